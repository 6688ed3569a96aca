"""The section constraints."""

from typing import Literal

from prefdag.runtime.types import NonNegative, strict

ConstraintName = Literal["kl", "chosen_drop"]


@strict
class Constraint:
    """Adds multiplier * relu(c - threshold) to the loss.

    Dual ascent after each step: multiplier + dual_rate * mean(c - threshold), at least 0.
    """

    threshold: float
    multiplier: NonNegative
    dual_rate: NonNegative


Constraints = dict[ConstraintName, Constraint | None]
