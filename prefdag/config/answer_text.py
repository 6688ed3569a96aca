"""The section answer_text."""

from typing import Annotated

from pydantic import Field

from prefdag.config.adapter import Shard
from prefdag.runtime.types import Count, Positive, PositiveInt, strict


@strict
class AnswerText:
    prompts: PositiveInt | None  # held-out prompts; null: all
    max_new_tokens: PositiveInt
    temperature: Positive
    top_p: Annotated[float, Field(gt=0, le=1)]
    batch_size: PositiveInt  # prompts generated at once
    seed: Count
    shard: Shard
