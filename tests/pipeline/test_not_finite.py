"""Training that diverges to non-finite values exits with 3, names the step and its rows, and keeps the last checkpoint."""

import re
import shutil
from pathlib import Path

import pytest
from clones import set_params
from killing import run_stage

from prefdag.runtime.artifacts import sha256

# A learning rate at which logits overflow. A language model's norms keep its logits finite, so it gets a beta at which
# rewards overflow.
TROUBLE = {
    "resnet_warmup": {"resnet_warmup.training.learning_rate": 1e30, "resnet_warmup.training.checkpoint_every": 1},
    "dpo_text": {"dpo_text.training.learning_rate": 1e30, "beta": 1e37},
}


@pytest.mark.parametrize(("stage", "output"), [("resnet_warmup", "resnet_reference"), ("dpo_text", "dpo_text")])
def test_a_training_with_values_that_are_not_finite_stops(stage: str, output: str, copy: Path) -> None:
    set_params(copy, TROUBLE[stage])
    shutil.rmtree(copy / "models" / output)
    shutil.rmtree(copy / ".prefdag" / "checkpoints", ignore_errors=True)
    code, log = run_stage(stage, copy)
    assert code == 3, log
    [last] = re.findall(r"error: (?:validation before )?step \d+: .*not finite; rows .*", log)
    assert "Traceback" not in log
    assert not (copy / "models" / output).exists()
    kept = {path: sha256(path) for path in copy.glob(f".prefdag/checkpoints/{stage}/*/step-*")}
    assert kept or "step 0:" in last
    # A second run continues from the checkpoint, fails at the same step, and keeps the checkpoint unchanged.
    code, again = run_stage(stage, copy)
    assert (code, last in again) == (3, True)
    assert {path: sha256(path) for path in copy.glob(f".prefdag/checkpoints/{stage}/*/step-*")} == kept
