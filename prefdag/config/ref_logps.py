"""The section ref_logps."""

from prefdag.config.adapter import Shard
from prefdag.runtime.types import Dtype, PositiveInt, strict


@strict
class RefLogps:
    dtype: Dtype
    tokens_per_batch: PositiveInt
    shard: Shard
