"""The section answer_text."""

from typing import Annotated

from pydantic import Field

from prefdag.config.samplers import LocalSampler, SamplingServer
from prefdag.runtime.types import Count, Positive, PositiveInt, Shard, Text, strict


@strict
class EndpointSampler(SamplingServer):
    """It serves both models."""

    reference: Text  # the names under which it serves the two models
    policy: Text


@strict
class AnswerText:
    sampler: Annotated[LocalSampler | EndpointSampler, Field(discriminator="kind")]
    prompts: PositiveInt | None  # held-out prompts; null: all
    max_new_tokens: PositiveInt
    temperature: Positive
    top_p: Annotated[float, Field(gt=0, le=1)]
    batch_size: PositiveInt  # prompts generated at once
    seed: Count
    shard: Shard
