"""Checks that the policy equals its reference at step 0 of DPO. Imports no torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prefdag.dpo.hook import StepHook
from prefdag.lifecycle.errors import NumericError

if TYPE_CHECKING:
    from prefdag.runtime.types import Dtype

# By how many nats two computations of the same log-probability may differ.
START_TOLERANCE: Mapping["Dtype", float] = {"float32": 2e-3, "bfloat16": 2.0}


class StartCheck(StepHook):
    """Checks the first step: the policy equals its reference, so every log-ratio is zero and the sigmoid loss is ln 2.

    Catches stale reference log-probabilities, dropout left on, batch statistics in the policy, and adapters that do not
    start at zero, even if the errors cancel in the mean.

    Args:
        tolerance: for the root mean square of the log-ratios, in nats.
    """

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance

    def before_update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Raises `NumericError` at step 0 if the policy differs from its reference."""
        off = metrics["logratios/square"] ** 0.5
        if step == 0 and not off <= self.tolerance:
            raise NumericError(
                f"step 0: the policy differs from its reference: log-ratios off by {off:.2g} nats "
                f"(tolerance {self.tolerance:g}), loss {metrics['loss']:.6f}; "
                "run ref_logps again, with the precision that the policy trains in"
            )
