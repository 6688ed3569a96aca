"""A training that stops being finite: exit 3, the step and its rows by name, and the last checkpoint as it was."""

import re
import shutil
from pathlib import Path

import pytest
from clones import set_params
from killing import run_stage

from prefdag.artifacts import sha256


@pytest.mark.parametrize(("stage", "output"), [("dpo_text", "dpo_text"), ("resnet_warmup", "resnet_reference")])
def test_a_training_that_is_not_finite(stage: str, output: str, copy: Path) -> None:
    set_params(copy, {f"{stage}.training.learning_rate": 1e30, f"{stage}.training.checkpoint_every": 1})
    shutil.rmtree(copy / "models" / output)
    shutil.rmtree(copy / ".prefdag" / "checkpoints", ignore_errors=True)
    code, said = run_stage(stage, copy)
    assert code == 3, said
    last = said.splitlines()[-1]
    assert re.match(r"error: (validation before )?step \d+: .* not finite; rows \S+", last), said
    assert "Traceback" not in said
    assert not (copy / "models" / output).exists()
    kept = {path: sha256(path) for path in copy.glob(f".prefdag/checkpoints/{stage}/*/step-*")}
    # Again: it goes on from the checkpoint, fails in the same place, and leaves that as it is.
    code, again = run_stage(stage, copy)
    assert (code, again.splitlines()[-1]) == (3, last)
    assert {path: sha256(path) for path in copy.glob(f".prefdag/checkpoints/{stage}/*/step-*")} == kept
