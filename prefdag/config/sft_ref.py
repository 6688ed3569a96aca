"""The section sft_ref."""

from prefdag.config.adapter import MergedAdapter
from prefdag.config.training import Training
from prefdag.runtime.types import Count, strict


@strict
class SupervisedTraining(Training):
    """A `Training` that may have 0 epochs."""

    epochs: Count


@strict
class SftRef:
    adapter: MergedAdapter
    training: SupervisedTraining
    gradient_checkpointing: bool
    seed: Count
