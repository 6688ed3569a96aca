"""The section answer_text for tests."""

from typing import Any

from prefdag.config.answer_text import AnswerText
from prefdag.config.samplers import LocalSampler

SETTINGS: dict[str, Any] = {
    "sampler": LocalSampler(kind="local"),
    "prompts": None,
    "max_new_tokens": 4,
    "temperature": 1.0,
    "top_p": 0.9,
    "batch_size": 3,
    "seed": 0,
    "shard": "none",
}


def answer_settings(**changes: Any) -> AnswerText:
    """`SETTINGS` with these changes."""
    return AnswerText(**SETTINGS | changes)
