"""Which stages of rounds run when settings change: dvc.yaml's own commands, run as DVC runs them, with trivial trainings.

A stage runs again if an input or a parameter has changed. plan_rounds, select_policy, the shell's part of each command and
sample_round's own decision are the real ones. The other stages write a hash of what they read.
"""

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from format_settings import format_settings
from paths import ROOT

from prefdag.check_params import check_params
from prefdag.project import dag
from prefdag.runtime.artifacts import read_json, remove, sha256, write_json
from prefdag.runtime.dvc_files import read_dag, script
from prefdag.runtime.yaml import read_yaml
from stages import plan_rounds, sample_round, select_policy

pytestmark = pytest.mark.slow

FOLDERS = ("data/", "models/", "reports/")
DAG = {
    name: entry
    for name, entry in read_dag(ROOT / "dvc.yaml").items()
    if script(name).endswith("_round") or name in ("plan_rounds", "select_policy")
}
MADE = {out for entry in DAG.values() for out in dag.names(entry, "outs")}
# What other stages make.
INPUTS = {dep for entry in DAG.values() for dep in dag.names(entry, "deps") if dep.startswith(FOLDERS)} - MADE
STAGES = ("sample_round", "judge_round", "dpo_round", "evaluate_round")
# A stage runs after those that make its inputs.
ORDER = ["plan_rounds", *(f"{name}@{number}" for number in (1, 2, 3) for name in STAGES), "select_policy"]
Repro = Callable[..., list[str]]


def of(*numbers: int) -> set[str]:
    return {f"{name}@{number}" for name in STAGES for number in numbers}


@pytest.fixture
def repro(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repro:
    """Runs what has changed, given the settings of rounds and the rounds that fail; returns the names of what ran."""
    monkeypatch.chdir(tmp_path)
    for name in INPUTS:  # of which one may lie in another
        Path(name).mkdir(parents=True, exist_ok=True)
        (Path(name) / "file").write_text(name)
    known: dict[str, str] = {}
    tree = read_yaml(ROOT / "params.yaml")

    def run(name: str, fails: set[int], params: dict[str, Any]) -> None:
        outs = [Path(out) for out in dag.names(DAG[name], "outs")]
        for out in outs:
            remove(out)
        if name == "plan_rounds":
            checked = check_params(params, Path("params.yaml"))
            plan_rounds.main(**{key: getattr(checked, key) for key in plan_rounds.main.keys})
            return
        if name == "select_policy":
            select_policy.main()
            return
        command = DAG[name]["cmd"].partition("; else ")[0] + "; else exit 42; fi"
        if (done := subprocess.run(command, shell=True, check=False)).returncode != 42:
            assert done.returncode == 0
            return
        stage, number = name.split("@")
        if stage == "sample_round" and not read_json(Path(f"reports/rounds/{int(number) - 1}.json"))["go"]:
            sample_round.main(int(number), format_settings())  # type: ignore[arg-type]
            return
        (out,) = outs
        if stage == "evaluate_round":
            parts: dict[str, Any] = {name: {} for name in ("before", "after", "change", "judge", "pairs")}
            go = int(number) not in fails
            write_json(out, {"go": go, "start": "previous", "reference": "first", "reasons": [], **parts})
            return
        out.mkdir(parents=True)
        (out / "hash").write_text(key(name, params))

    def key(name: str, params: dict[str, Any]) -> str:
        deps = [dep for dep in dag.names(DAG[name], "deps") if dep.startswith(FOLDERS)]
        read = {dep: sha256(Path(dep)) for dep in deps}
        values = {each: params[each] for each in DAG[name].get("params", [])}
        return hashlib.sha256(json.dumps([read, values], sort_keys=True).encode()).hexdigest()

    def reproduce(*, fails: set[int] = frozenset(), beta: float = 0.1, **settings: Any) -> list[str]:  # type: ignore[assignment]
        params = tree | {"beta": beta, "rounds": tree["rounds"] | settings}
        ran = []
        for name in ORDER:
            if known.get(name) != (current := key(name, params) + str(sorted(fails) if "evaluate" in name else "")):
                run(name, fails, params)
                known[name] = current
                ran.append(name)
        return ran

    return reproduce


def chosen() -> str:
    return str(read_json(select_policy.CHOSEN)["model"])


def test_without_rounds_every_stage_runs_once_and_is_off(repro: Repro) -> None:
    assert set(repro()) == set(ORDER) == set(DAG)
    assert chosen() == "models/dpo_text"
    assert repro() == []
    # another beta gives dpo_text other weights, and the trainings another parameter: what is off stays off,
    # and only round 1 reads dpo_text
    Path("models/dpo_text/file").write_text("other weights")
    assert set(repro(beta=0.3)) == {"plan_rounds", *of(1), "select_policy"}
    assert chosen() == "models/dpo_text"
    assert all(Path(f"models/rounds/{number}/off").exists() for number in (1, 2, 3))


def test_a_higher_count_runs_the_new_rounds_alone(repro: Repro) -> None:
    repro()
    assert {"plan_rounds", *of(1, 2), "select_policy"} <= set(repro(count=2))
    assert Path("models/rounds/3/off").exists()
    assert chosen() == "models/rounds/2"
    assert set(repro(count=3)) == {"plan_rounds", *of(3), "select_policy"}
    assert chosen() == "models/rounds/3"
    assert not set(repro(count=2)) & of(1, 2)
    assert chosen() == "models/rounds/2"


def test_a_change_of_round_2_leaves_round_1(repro: Repro) -> None:
    repro(count=3)
    ran = set(repro(count=3, overrides={"2": {"samples": 8}}))
    assert not ran & of(1)
    assert {"plan_rounds", *of(2), "sample_round@3", "dpo_round@3"} <= ran


def test_a_change_of_judging_samples_nothing_again_in_its_round(repro: Repro) -> None:
    repro(count=1)
    assert set(repro(count=1, min_margin=0.5)) >= {"judge_round@1", "dpo_round@1", "evaluate_round@1"}
    ran = repro(count=1, min_margin=0.7)
    assert "sample_round@1" not in ran
    ran = repro(count=1, min_margin=0.7, stop_below=0.4)
    assert set(ran) <= {"plan_rounds", "evaluate_round@1", "select_policy", "sample_round@2"}


def test_a_failing_round_switches_the_next_ones_off(repro: Repro) -> None:
    repro(count=3)
    repro(count=3, fails={2})
    assert chosen() == "models/rounds/1"
    assert Path("models/rounds/2/hash").exists()
    assert Path("models/rounds/3/off").exists()
    assert read_json(Path("reports/rounds/3.json")) is None
