"""The section dpo_image."""

from typing import Literal

from prefdag.config.reference import Reference
from prefdag.config.training import Training
from prefdag.runtime.types import Count, strict


@strict
class DpoImage:
    negatives: Literal["random", "hard", "confusion"]
    reference: Reference
    max_shift: Count
    flip: bool
    training: Training
