"""The section judge_text."""

from typing import Annotated, Literal

from pydantic import Field

from prefdag.config.sources import ModelSource
from prefdag.config.types import Positive, PositiveInt, Text, strict


@strict
class ImplicitJudge:
    """The implicit reward of the pipeline's own policy, which is partial to it."""

    kind: Literal["implicit"]


@strict
class RewardModelJudge:
    """A model with one score for a conversation: a sequence-classification head, in safetensors."""

    kind: Literal["reward_model"]
    source: ModelSource


@strict
class EndpointJudge:
    """A chat model behind an OpenAI-compatible server; its key stands in the environment alone."""

    kind: Literal["endpoint"]
    url: Annotated[
        str, Field(pattern=r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$")
    ]  # .../v1: no user, no query, which can be secrets
    model: Text
    max_tokens: PositiveInt  # of a verdict and its reasons
    timeout: Positive  # seconds


@strict
class JudgeText:
    judge: Annotated[ImplicitJudge | RewardModelJudge | EndpointJudge, Field(discriminator="kind")]
    tokens_per_batch: PositiveInt  # of the implicit judge
