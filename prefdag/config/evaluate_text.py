"""The section evaluate_text."""

from prefdag.config.adapter import Shard
from prefdag.runtime.types import PositiveInt, strict


@strict
class EvaluateText:
    max_eval_rows: PositiveInt | None
    tokens_per_batch: PositiveInt
    shard: Shard
