"""The section judge_text."""

from prefdag.config.judges import Judge
from prefdag.runtime.types import PositiveInt, Shard, strict


@strict
class JudgeText:
    judge: Judge
    tokens_per_batch: PositiveInt  # used by the implicit judge
    shard: Shard
