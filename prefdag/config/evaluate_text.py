"""The section evaluate_text."""

from prefdag.runtime.types import PositiveInt, Shard, strict


@strict
class EvaluateText:
    max_eval_rows: PositiveInt | None
    tokens_per_batch: PositiveInt
    shard: Shard
