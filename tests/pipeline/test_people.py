"""A round that people judge: DVC stops with one line until their labels are there, then goes on from the kept answers."""

import json
from pathlib import Path

import pandas as pd
from clones import Run, set_params, stages_run

JUDGE = "dag/judge_round/dvc.yaml:judge_round@1"


def test_a_round_waits_for_people_and_goes_on(copy: Path, run: Run) -> None:
    set_params(copy, {"rounds.count": 1, "rounds.judge": {"kind": "people"}})
    stopped = run("dvc", "repro", JUDGE, check=False)
    table = pd.read_csv(copy / "labels/to_label/round-1/to_label.csv", dtype=str)
    wait = f"labels/round-1: {len(table)} of {len(table)} comparisons wait for the label of a person; `prefdag label 1` shows"
    assert stopped.returncode
    assert sum(wait in line for line in stopped.stdout.splitlines()) == 1
    assert "Traceback" not in stopped.stdout
    assert not (copy / "data/rounds/1/pairs").exists()

    table["outcome"] = ["first", "second"] * (len(table) // 2) + ["tie"] * (len(table) % 2)
    table.to_csv(copy / "labels/round-1/ann.csv", index=False)
    assert stages_run(run("dvc", "repro", JUDGE).stdout) == ["judge_round@1"]
    pairs = pd.read_parquet(copy / "data/rounds/1/pairs/train.parquet")
    assert len(pairs)
    assert {tuple(json.loads(judge)["people"]) for judge in pairs["judge"]} == {("ann",)}
    counted = pd.read_csv(copy / "data/rounds/1/pairs/labels.csv")
    assert counted["outcome"].tolist() == table["outcome"].tolist()

    assert stages_run(run("dvc", "repro", JUDGE).stdout) == []
    (copy / "labels/round-1/bob.csv").write_text(table.assign(outcome="first").to_csv(index=False))
    assert stages_run(run("dvc", "repro", JUDGE).stdout) == ["judge_round@1"]  # a new label judges again
    assert {
        tuple(json.loads(judge)["people"])
        for judge in pd.read_parquet(copy / "data/rounds/1/pairs/train.parquet")["judge"]
    } == {("ann", "bob")}
