"""The part of OpenAI's chat completions API that the chat server supports, as pydantic models and JSON.

Options that would change an answer but are not supported are refused, unless they have the value that changes nothing.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MAX_MESSAGES = 256
MAX_NEW_TOKENS = 4096


class StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def _joined(content: Any) -> Any:
    """Content as one text. Some clients send it in parts."""
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        return "".join(part["text"] for part in content)
    return content


def _encodable(text: str) -> str:
    """Refuse a lone surrogate: JSON can encode it, but no tokenizer accepts it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair; send complete characters") from None
    return text


class ChatMessage(StrictModel):
    """A turn of a dialogue."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_joined), AfterValidator(_encodable)]


class StreamOptions(StrictModel):
    """Options of a streamed answer: whether a final chunk has the token counts."""

    include_usage: bool = False


class CompletionRequest(StrictModel):
    """A request for the next turn of a dialogue."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)  # the newer name
    temperature: float = Field(0.0, ge=0, le=2)
    seed: int = Field(0, ge=0, lt=2**63)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    n: Literal[1] = 1
    top_p: Literal[1] = 1
    presence_penalty: Literal[0] = 0
    frequency_penalty: Literal[0] = 0

    @model_validator(mode="after")
    def _ends_with_a_question(self) -> Self:
        if self.messages[-1].role != "user":
            raise ValueError("the last message must be from the user")
        return self

    @property
    def dialogue(self) -> list[dict[str, str]]:
        """The messages in the form that chat templates expect."""
        return [message.model_dump() for message in self.messages]

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


def completion(head: dict[str, Any], text: str, finish: str, usage: dict[str, int]) -> dict[str, Any]:
    """The body of a whole answer.

    Args:
        head: id, created, model, and `left_out`, which is our own.
    """
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": finish}
    return {**head, "object": "chat.completion", "choices": [choice], "usage": usage}


def chunk(head: dict[str, Any], delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    """One chunk of a streamed answer; `head` as in `completion`."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {**head, "object": "chat.completion.chunk", "choices": [choice]}


def token_usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Token counts of the prompt and the answer."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def error_body(
    message: str, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The body of an error, in the form that OpenAI's clients expect.

    Args:
        param: the field of the request that is wrong, such as `messages.0.role`.
        code: the error's name in OpenAI's API, if it has one.
    """
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
