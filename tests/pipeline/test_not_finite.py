"""A training that stops being finite: exit 3, the step and its rows by name, and the last checkpoint as it was."""

import re
import shutil
from pathlib import Path

import pytest
from clones import set_params
from killing import run_stage

from prefdag.runtime.artifacts import sha256

# A step so long that logits overflow; rewards so large that they do (a language model's norms keep its logits finite).
TROUBLE = {
    "resnet_warmup": {"resnet_warmup.training.learning_rate": 1e30, "resnet_warmup.training.checkpoint_every": 1},
    "dpo_text": {"dpo_text.training.learning_rate": 1e30, "beta": 1e37},
}


@pytest.mark.parametrize(("stage", "output"), [("resnet_warmup", "resnet_reference"), ("dpo_text", "dpo_text")])
def test_a_training_that_is_not_finite(stage: str, output: str, copy: Path) -> None:
    set_params(copy, TROUBLE[stage])
    shutil.rmtree(copy / "models" / output)
    shutil.rmtree(copy / ".prefdag" / "checkpoints", ignore_errors=True)
    code, said = run_stage(stage, copy)
    assert code == 3, said
    [last] = re.findall(r"error: (?:validation before )?step \d+: .*not finite; rows .*", said)
    assert "Traceback" not in said
    assert not (copy / "models" / output).exists()
    kept = {path: sha256(path) for path in copy.glob(f".prefdag/checkpoints/{stage}/*/step-*")}
    assert kept or "step 0:" in last
    # Again: it goes on from the checkpoint, fails in the same place, and leaves that as it is.
    code, again = run_stage(stage, copy)
    assert (code, last in again) == (3, True)
    assert {path: sha256(path) for path in copy.glob(f".prefdag/checkpoints/{stage}/*/step-*")} == kept
