"""What is not trained is named, and an optimiser that trains something else than the model is refused."""

from pathlib import Path

import pytest
import torch
from linear_tasks import ignore, regression
from tiny_models import training
from torch import Tensor, nn

from prefdag.train.checkpoint import Checkpoints
from prefdag.train.loop import fit
from prefdag.train.movement import fingerprints
from prefdag.train.task import Tasks


class Parted(nn.Module):
    """A model with a part that its output does not depend on. After `swap_at` passes, another tensor takes a weight's place."""

    def __init__(self, swap_at: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used = nn.Linear(3, 1).double()
        self.spare = nn.Linear(3, 1).double()
        self.left = swap_at

    def forward(self, x: Tensor) -> Tensor:
        if self.left is not None:
            self.left -= 1
            if not self.left:
                self.used.weight = nn.Parameter(self.used.weight.detach().clone())
        return self.used(x)


def fitted(model: nn.Module, folder: Path, **changes: float) -> None:
    tasks = Tasks(regression(12), None)
    fit(model, tasks, training(**changes), seed=0, checkpoints=Checkpoints(folder / "checkpoints"), log=ignore)


def test_tensors_that_do_not_change_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fitted(Parted(), tmp_path)
    (warning,) = caplog.messages
    assert warning.startswith("spare.weight and 1 more: not changed by 3 steps, of 4 tensors that are trained: ")


def test_a_learning_rate_below_the_precision_of_the_weights_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fitted(Parted().requires_grad_(False).used.requires_grad_(), tmp_path, learning_rate=1e-30)
    (warning,) = caplog.messages
    assert warning.startswith("weight and 1 more: not changed by 3 steps, of 2 tensors that are trained: ")


def test_what_changes_or_is_not_trained_is_not_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Parted()
    model.spare.requires_grad_(False)
    fitted(model, tmp_path)
    assert caplog.messages == []


def test_an_optimiser_of_other_tensors_is_refused(tmp_path: Path) -> None:
    """The loss would fall, since the bias is still trained."""
    with pytest.raises(RuntimeError, match="the optimiser has other parameters than the model"):
        fitted(Parted(swap_at=2), tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_fingerprint_changes_with_any_bit(dtype: torch.dtype) -> None:
    tensor = nn.Parameter(torch.zeros(4, 3, dtype=dtype).t())  # not contiguous
    before = fingerprints({"a": tensor})
    assert fingerprints({"a": tensor}) == before
    with torch.no_grad():
        tensor[1, 2] = -0.0
    assert fingerprints({"a": tensor}) != before
