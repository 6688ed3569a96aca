"""Columns that a row of any format may have: system text, history, tools, annotator, source and split."""

from typing import TYPE_CHECKING

from prefdag.formats.dialogues import Message, dialogue
from prefdag.formats.faults import Fault, kind, shown
from prefdag.formats.files import SPLIT_WORDS, split_of_name
from prefdag.formats.values import compact, holds, needs_text

if TYPE_CHECKING:
    from prefdag.formats.fields import Field, Row

SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")


def with_system(row: "Row", prompt: list[Message]) -> list[Message]:
    """`prompt` with the row's system text in front. Raises `Fault` if it has another one."""
    column = row.one_of(*SYSTEM_COLUMNS)
    if column is None or not holds(column.value):
        return prompt
    system = {"role": "system", "content": column.text()}
    if not system["content"].strip() or prompt[0] == system:
        return prompt
    if prompt[0]["role"] == "system":
        both = f"{shown(system['content'])}, but the dialogue's system turn says {shown(prompt[0]['content'])}"
        raise Fault(column.path, f"{both}; keep one of them")
    return [system, *prompt]


def with_history(row: "Row", prompt: list[Message]) -> list[Message]:
    """`prompt` with the turns in the column `history` after its system turn: a list of [user, assistant] or of turns."""
    if not row.has("history") or row["history"].is_read:
        return prompt
    earlier: list[Message] = []
    for field in row["history"].items("turns"):
        if isinstance(field.value, list):
            question, answer = _two(field)
            earlier += [*dialogue(question, "user"), *dialogue(answer, "assistant")]
        else:
            earlier += dialogue(field, "user")
    system = [turn for turn in prompt[:1] if turn["role"] == "system"]
    return system + earlier + prompt[len(system) :]


def tools_of(field: "Field") -> str | None:
    """The JSON list of the schemas of tools. They may be text, and a single one may be no list."""
    field.structured()
    tools = [tool.structured() for tool in (field.items("tools") if isinstance(field.value, list) else [field])]
    for tool in tools:
        if not isinstance(tool.value, dict):
            raise Fault(tool.path, f"{kind(tool.value)} where an object is needed: the JSON schema of a function")
    return compact([tool.take() for tool in tools], field.path) if tools else None


def attribution(row: "Row") -> dict[str, str | None]:
    """The optional columns `annotator` (a name or a number) and, as `origin`, `source`: the collection a row is from.

    A source that is an object or another value is written as JSON. None for a column that the row does not have.
    """
    values: dict[str, str | None] = {}
    for name, column in (("annotator", "annotator"), ("origin", "source")):
        value = row[column].take() if column in row else None
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # pandas turns 7 into 7.0 if other rows have none
        if not holds(value):
            values[name] = None
        elif isinstance(value, int) and not isinstance(value, bool):
            values[name] = str(value)
        elif isinstance(value, str) or name == "annotator":
            values[name] = needs_text(value, column)
        else:
            values[name] = compact(value, column)
    return values


def published_split(row: "Row") -> str | None:
    """The split in the column `split`: train, val or test. None without one."""
    if not row.has("split"):
        return None
    text = row["split"].text()
    split = split_of_name(text.replace("/", "_"))
    if split is None:
        remedy = f"use {', '.join(SPLIT_WORDS)}, or set validate_pairs.columns to {{split: null}}"
        raise Fault(row["split"].path, f"unknown split {shown(text)}; {remedy}")
    return split


def _two(field: "Field") -> list["Field"]:
    fields = field.items("two texts")
    if len(fields) != 2:
        raise Fault(field.path, f"{len(fields)} values where [user, assistant] is needed")
    return fields
