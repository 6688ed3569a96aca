"""What generates answers: the samplers of answer_text and rounds."""

from typing import Literal

from prefdag.config.endpoint import EndpointUrl
from prefdag.runtime.types import NonNegative, Positive, PositiveInt, strict


@strict
class LocalSampler:
    """This process generates, with the model on its disk."""

    kind: Literal["local"]


@strict
class SamplingServer:
    """An OpenAI-compatible server, such as vLLM. Its key comes from the environment only."""

    kind: Literal["endpoint"]
    url: EndpointUrl
    timeout: Positive  # seconds for a whole answer
    # nats per token, root mean square: how far the log-probabilities of a served model may lie from ours; null: unchecked
    tolerance: NonNegative | None
    parallel: PositiveInt = 16  # answers asked for at once
