"""Hooks of the training loop. The loop calls them, and checkpoints save their state."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class StepHook:
    """Base class of hooks: a moving reference, constraint multipliers, a check. Each overrides the methods it needs."""

    def state(self) -> Mapping[str, "Tensor"]:
        """The live tensors that checkpoints save and restore in place."""
        return {}

    def before_update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Called with a step's metrics before the weights change. Raises to stop the run."""

    def after_step(self, metrics: Mapping[str, float], epoch_ends: bool) -> None:
        """Called after each optimiser step with that step's metrics."""

    def metrics(self) -> Mapping[str, float]:
        """Metrics to add to those of a validation."""
        return {}
