"""The section judge_text."""

from typing import Annotated, Literal

from pydantic import Field

from prefdag.config.endpoint import EndpointUrl
from prefdag.config.sources import ModelSource
from prefdag.config.verify import VerifyJudge
from prefdag.runtime.types import Positive, PositiveInt, Shard, Text, strict


@strict
class ImplicitJudge:
    """The implicit reward of the pipeline's own policy, which is biased towards that policy."""

    kind: Literal["implicit"]


@strict
class RewardModelJudge:
    """A sequence-classification model, in safetensors, that gives a conversation one score."""

    kind: Literal["reward_model"]
    source: ModelSource


@strict
class EndpointJudge:
    """A chat model behind an OpenAI-compatible server. Its key comes from the environment only."""

    kind: Literal["endpoint"]
    url: EndpointUrl
    model: Text
    max_tokens: PositiveInt  # for a verdict and its reasons
    timeout: Positive  # seconds for a whole reply
    parallel: PositiveInt = 4  # contests asked about at once


@strict
class JudgeText:
    judge: Annotated[ImplicitJudge | RewardModelJudge | EndpointJudge | VerifyJudge, Field(discriminator="kind")]
    tokens_per_batch: PositiveInt  # used by the implicit judge
    shard: Shard
