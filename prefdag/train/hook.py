"""What accompanies a model through its training: the loop calls it, and checkpoints hold its state."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class StepHook:
    """A moving reference, the multipliers of constraints, a check: each overrides what it needs."""

    def state(self) -> Mapping[str, "Tensor"]:
        """Its live tensors, which checkpoints save and copy back into."""
        return {}

    def before_update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Called with a step's metrics before the weights change; raises if the run must not go on."""

    def after_step(self, metrics: Mapping[str, float], epoch_ends: bool) -> None:
        """Called after each optimiser step with that step's metrics."""

    def metrics(self) -> Mapping[str, float]:
        """What it adds to the metrics of a validation."""
        return {}
