"""The section sft_ref."""

from typing import Self

from pydantic import model_validator

from prefdag.config.adapter import MergedAdapter, check_load_dtype
from prefdag.config.training import Training
from prefdag.runtime.types import Count, Dtype, Shard, strict


@strict
class SupervisedTraining(Training):
    """A `Training` that may have 0 epochs."""

    epochs: Count


@strict
class SftRef:
    adapter: MergedAdapter
    training: SupervisedTraining
    gradient_checkpointing: bool
    shard: Shard
    load_dtype: Dtype  # of the base model's weights
    save_dtype: Dtype  # of the weights in models/reference
    seed: Count

    @model_validator(mode="after")
    def _float_shards(self) -> Self:
        if self.shard == "full" and self.adapter.kind == "qlora":
            raise ValueError("shard full does not support adapters of kind qlora: set it to none")
        return self

    @model_validator(mode="after")
    def _exact_training(self) -> Self:
        check_load_dtype(self.load_dtype, self.adapter.kind, self.training.precision)
        return self
