"""Turns of dialogues as chat templates read them.

In data/validated/pairs.parquet a turn is {role, content, extra}, and a response is its text with `chosen_extra` or
`rejected_extra` beside it. An extra is a JSON object with the other fields of a turn, such as tool_calls and reasoning_content.
A column that a file does not have counts as null.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prefdag.runtime.artifacts import read_table

# {"role": "system" | "user" | "assistant" | "tool", "content": ..., and what else a template may read}.
Messages = Sequence[Mapping[str, Any]]
SIDES = ("chosen", "rejected")


class Asked(NamedTuple):
    """What an answer replies to: a dialogue, and the tools that it offers."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None


def read_dialogues(path: Path, ids: Iterable[str]) -> dict[str, Asked]:
    """The dialogues of some validated rows, by id."""
    rows = read_table(path, filters=[("id", "in", set(ids))]).to_pylist()
    return {row["id"]: Asked(messages(row["prompt"]), tools(row)) for row in rows}


def messages(prompt: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The turns of a validated prompt, with their extra fields."""
    return [
        {key: value for key, value in turn.items() if key != "extra"} | _extra(turn.get("extra")) for turn in prompt
    ]


def response(row: Mapping[Any, Any], side: str) -> dict[str, Any] | None:
    """The turn of a validated row's response on a side; None if it has no such response."""
    text, extra = row[side], _extra(row.get(f"{side}_extra"))
    if not isinstance(text, str) and not extra:
        return None
    return {"role": "assistant", "content": text if isinstance(text, str) else "", **extra}


def tools(row: Mapping[Any, Any]) -> list[dict[str, Any]] | None:
    """The JSON schemas of the tools that a validated row offers; None if it offers none."""
    text = row.get("tools")
    return (json.loads(text) or None) if isinstance(text, str) else None


def typed_text(turn: Mapping[str, Any]) -> str:
    """All text of a validated turn that somebody typed or that a model wrote: its content, and its extra fields as JSON."""
    return "\n".join(turn[key] for key in ("content", "extra") if isinstance(turn.get(key), str))


def shown(turn: Mapping[str, Any]) -> str:
    """A turn as text for people and judges: reasoning, content, and calls as JSON."""
    parts = [turn.get("reasoning_content"), turn["content"]]
    parts += [json.dumps(call.get("function", call), ensure_ascii=False) for call in turn.get("tool_calls") or ()]
    return "\n".join(part for part in parts if part)


def _extra(value: Any) -> dict[str, Any]:
    """A column of pandas has NaN where it is null."""
    decoded: dict[str, Any] = json.loads(value) if isinstance(value, str) else {}
    return {key: each for key, each in decoded.items() if each is not None}
