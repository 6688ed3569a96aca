"""The longest prompt and response, in tokens: as given, or chosen by the data (`auto`)."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from prefdag.lifecycle.errors import ParamsError
from prefdag.runtime.artifacts import read_json

if TYPE_CHECKING:
    from prefdag.config.format_pairs import FormatPairs

HELD = 95  # per cent of the prompts, and of the responses, that `auto` does not cut
LEAST_RESPONSE = 2  # a token and the end of the turn
Lengths = npt.NDArray[np.int32]


class Limits(NamedTuple):
    """The most tokens of a prompt and of a response, with BOS and the end of the turn."""

    max_prompt_tokens: int
    max_response_tokens: int


def given(params: "FormatPairs") -> Limits | None:
    """The limits of params.yaml, None if one of them is auto."""
    prompt, response = params.max_prompt_tokens, params.max_response_tokens
    return None if isinstance(prompt, str) or isinstance(response, str) else Limits(prompt, response)


def resolved(params: "FormatPairs", summary: Path) -> Limits:
    """The limits with which format_pairs cut the rows; `summary` is the summary.json that it wrote."""
    if limits := given(params):
        return limits
    written = read_json(summary)
    return Limits(*(int(written[name]) for name in Limits._fields))


def choose(params: "FormatPairs", prompts: Lengths, responses: Lengths, window: int | None) -> Limits:
    """The limits with `auto` replaced by the length that holds `HELD` per cent of the rows.

    Both together stay within the model's window and `max_auto_tokens`. If they do not fit, each gets what the other one leaves,
    and at least half.

    Args:
        prompts, responses: lengths in tokens of all prompts and of all responses.
        window: the model's positions, None if it does not say.

    Raises:
        ParamsError: a given limit leaves no room for the other one.
    """
    room = min(params.max_auto_tokens, window or params.max_auto_tokens)
    prompt, response = params.max_prompt_tokens, params.max_response_tokens
    if not isinstance(prompt, str):
        return Limits(prompt, min(_held(responses), _left("max_prompt_tokens", prompt, room, window)))
    if not isinstance(response, str):
        return Limits(min(_held(prompts), _left("max_response_tokens", response, room, window)), response)
    most = max(room - _held(prompts), room // 2)
    chosen = max(LEAST_RESPONSE, min(_held(responses), most))
    return Limits(max(1, min(_held(prompts), room - chosen)), chosen)


def check_window(limits: Limits, window: int | None) -> None:
    """Check that a prompt and its response fit into the model's context window. Raises `ParamsError`."""
    if window and sum(limits) > window:
        raise ParamsError(
            f"params.yaml: format_pairs: max_prompt_tokens + max_response_tokens is "
            f"{sum(limits)}, but the model has {window} positions; lower them, or set them to auto"
        )


def _held(lengths: Lengths) -> int:
    return int(np.percentile(lengths, HELD, method="inverted_cdf")) if len(lengths) else LEAST_RESPONSE


def _left(name: str, limit: int, room: int, window: int | None) -> int:
    """What a given limit leaves to the other one: up to `room`, within the window."""
    left = room if window is None else min(room, window - limit)
    if left < LEAST_RESPONSE:
        raise ParamsError(
            f"params.yaml: format_pairs.{name}: {limit} of the model's {window} positions leave no room; lower it"
        )
    return left
