"""The section dpo_text."""

from typing import Literal, Self

from pydantic import model_validator

from prefdag.config.adapter import Adapter, check_load_dtype
from prefdag.config.reference import Reference
from prefdag.config.training import Training
from prefdag.runtime.types import Dtype, Shard, strict


@strict
class TextReference(Reference):
    """`logps` cached: read from stage ref_logps; live: computed during training."""

    logps: Literal["cached", "live"]

    @model_validator(mode="after")
    def _no_cache_of_what_moves(self) -> Self:
        if self.update != "none" and self.logps == "cached":
            raise ValueError(
                f"a reference that moves (update '{self.update}') has no cached log-probabilities: set logps to live"
            )
        return self


@strict
class DpoText:
    adapter: Adapter
    reference: TextReference
    training: Training
    gradient_checkpointing: bool
    shard: Shard
    load_dtype: Dtype  # of the reference's weights

    @model_validator(mode="after")
    def _whole_prefix(self) -> Self:
        if self.adapter.kind == "prefix" and self.gradient_checkpointing:
            raise ValueError(
                "gradient_checkpointing would lose the prefix, which layers keep in a cache: set it to false"
            )
        return self

    @model_validator(mode="after")
    def _float_shards(self) -> Self:
        if self.shard == "full" and self.adapter.kind in {"qlora", "prefix"}:
            raise ValueError(f"shard full does not support adapters of kind {self.adapter.kind}: set it to none")
        return self

    @model_validator(mode="after")
    def _exact_training(self) -> Self:
        check_load_dtype(self.load_dtype, self.adapter.kind, self.training.precision)
        if self.load_dtype == "bfloat16" and self.reference.update != "none":
            raise ValueError(
                "load_dtype bfloat16 would round away the steps of a reference that moves: set it to float32"
            )
        return self

    @model_validator(mode="after")
    def _same_weights(self) -> Self:
        if self.adapter.kind == "qlora" and self.reference.logps == "cached":
            raise ValueError(
                "qlora trains 4-bit weights, not the weights that ref_logps scored: set reference.logps to live"
            )
        return self
