"""The section ref_logps."""

from prefdag.runtime.types import Dtype, PositiveInt, Shard, strict


@strict
class RefLogps:
    dtype: Dtype
    tokens_per_batch: PositiveInt
    shard: Shard
