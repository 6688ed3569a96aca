"""The section ref_logps."""

from prefdag.config.types import Dtype, PositiveInt, strict


@strict
class RefLogps:
    dtype: Dtype
    tokens_per_batch: PositiveInt
