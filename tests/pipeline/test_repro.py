"""`dvc repro` and `dvc exp run` as a user calls them: which stages run, and which files change in Git."""

import re
from pathlib import Path

import pandas as pd
import pytest
from clones import AFTER_DPO, Run, stages_run, without_rounds

from benchmarks import roofline
from prefdag.tracking.durations import durations


def test_a_second_run_has_nothing_to_do(run: Run) -> None:
    assert stages_run(run("dvc", "repro").stdout) == []


def test_only_parameters_lock_and_metrics_change_in_git(run: Run) -> None:
    changed = run("git", "status", "--porcelain", "--untracked-files=all").stdout.splitlines()
    known = r"(\?\?| M) (params\.yaml|(dag/\w+/)?dvc\.lock|reports/metrics\.json)"
    assert [line for line in changed if not re.fullmatch(known, line)] == []


def test_an_experiment_with_another_loss_and_reference(run: Run) -> None:
    """A sum of losses, one of them over the whole batch, and moving references, set on the command line."""
    loss = ["-S", "loss={sigmoid: 0.8, bco: 0.2, sft: 1.0}", "-S", "dpo_image.negatives=hard"]
    moving = ["dpo_text.reference={logps: live, update: polyak, alpha: 0.001}", "dpo_image.reference.update=copy"]
    ran = stages_run(run("dvc", "exp", "run", "--temp", *loss, "-S", moving[0], "-S", moving[1]).stdout)
    assert sorted(without_rounds(ran)) == sorted(
        [*("control_image", "control_text", "dpo_text", "dpo_image"), *AFTER_DPO]
    )


def test_a_profile_is_written_into_params(copy: Path) -> None:
    assert "max_pairs: 20" in (copy / "params.yaml").read_text()


def test_an_experiment_that_repeats_another_publishes_its_own_run(run: Run) -> None:
    assert stages_run(run("dvc", "exp", "run", "--temp").stdout) == ["publish"]


def test_the_arithmetic_of_a_run_is_counted_stage_by_stage(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the reference's training, from its rows: a forward and a backward pass, and the validations."""
    monkeypatch.chdir(tiny)
    model = roofline.model_of(Path("models/reference"))
    needed = roofline.stages(model)
    assert set(needed) < set(durations())
    assert min(needed.values()) > 0
    train, val = (pd.read_parquet(f"data/pairs/{split}.parquet") for split in ("train", "val"))
    passes = [(train, 4), *[(val, 2)] * 5]  # four steps, with a validation before the first and after each
    expected = sum(
        model.flops(len(row.prompt_ids), [len(row.chosen_ids) - row.chosen_truncated], per_weight)  # a cut has no end
        for rows, per_weight in passes
        for row in rows.itertuples()
    )
    assert needed["sft_ref"] == expected
