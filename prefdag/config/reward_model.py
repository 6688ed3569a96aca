"""The section reward_model."""

from typing import Self

from pydantic import model_validator

from prefdag.config.adapter import MergedAdapter
from prefdag.config.training import Training
from prefdag.runtime.types import Count, strict


@strict
class RewardModel:
    train: bool  # false: there is none
    adapter: MergedAdapter
    training: Training
    gradient_checkpointing: bool
    seed: Count

    @model_validator(mode="after")
    def _whole_weights(self) -> Self:
        if self.adapter.kind == "qlora":
            raise ValueError("adapter.kind: a reward model does not support qlora: set it to lora")
        return self
