"""The section answer_text."""

from typing import Annotated, Literal

from pydantic import Field

from prefdag.config.endpoint import EndpointUrl
from prefdag.runtime.types import Count, NonNegative, Positive, PositiveInt, Shard, Text, strict


@strict
class LocalSampler:
    """This process generates, with the models on its disk."""

    kind: Literal["local"]


@strict
class EndpointSampler:
    """An OpenAI-compatible server, such as vLLM, that serves both models. Its key comes from the environment only."""

    kind: Literal["endpoint"]
    url: EndpointUrl
    reference: Text  # the names under which it serves the two models
    policy: Text
    timeout: Positive  # seconds for a whole answer
    # nats per token, root mean square: how far the log-probabilities of a served model may lie from ours; null: unchecked
    tolerance: NonNegative | None
    parallel: PositiveInt = 16  # answers asked for at once


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
