"""`ROW_FORMATS`, the formats of rows: their keys and parsers, and how a file's format is detected."""

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from prefdag.formats.compared import arena, safe_rlhf, versus
from prefdag.formats.context import tools_of, with_history, with_system
from prefdag.formats.dialogues import dialogue
from prefdag.formats.faults import EXCERPT, Fault
from prefdag.formats.judgements import PREFERENCE_COLUMNS, preference, scores
from prefdag.formats.paired import hh_rlhf, instructed, labelled_dialogue, openai, paired, single
from prefdag.formats.scored import distilabel, helpsteer, nectar, shp, strength, ultrafeedback

if TYPE_CHECKING:
    from prefdag.formats.fields import Field, Row
    from prefdag.formats.pair import RecordPair

SIDES = ("chosen", "rejected")

# Keys that validate_pairs.columns may map.
MAPPED = {"prompt", "chosen", "rejected", "completion", "label"}
FIRST_SUGGESTED = {"plain", "sharegpt", "alpaca", "orca", "messages", "unpaired"}


class RowFormat(NamedTuple):
    """The keys of a record in this format ("a|b": either), and the function that parses it, which raises `Fault`."""

    keys: tuple[str, ...]
    parse: Callable[["Row"], "RecordPair"]
    like: Callable[["Row"], bool] = lambda row: True  # for `detect_format`, if other formats have the same keys
    several: bool = False  # consecutive rows with the same prompt are one record: a row and its `others`


def _is_transcript(field: "Field") -> bool:
    return isinstance(field.value, str) and "\n\nAssistant:" in field.value


def _is_dialogue(value: object) -> bool:
    return isinstance(value, list) or (isinstance(value, str) and re.match(r"\s*\[\s*\{", value) is not None)


def _ends_with_user(field: "Field") -> bool:
    """Whether a list of turns, perhaps stored as text, has any and does not end with the assistant's."""
    with suppress(Fault):
        turns = dialogue(field, "user")
        return bool(turns) and turns[-1]["role"] != "assistant"
    return True  # its parser names the fault


# Formats with more specific keys come first: `detect_format` takes the first of those that fit most of the first rows.
ROW_FORMATS: Mapping[str, RowFormat] = {
    "sharegpt": RowFormat(("conversations", "chosen", "rejected"), partial(paired, prompt="conversations")),
    "axolotl": RowFormat(
        ("messages", "chosen", "rejected"),
        partial(paired, prompt="messages"),
        like=lambda row: _ends_with_user(row["messages"]),
    ),
    "openai": RowFormat(("input", "preferred_output", "non_preferred_output"), openai),
    "argilla": RowFormat(
        ("prompt|instruction|question", "chosen_response", "rejected_response"),
        partial(
            instructed, prompt="prompt|instruction|question", chosen="chosen_response", rejected="rejected_response"
        ),
    ),
    "shp": RowFormat(("history", "human_ref_A", "human_ref_B", "labels"), shp),
    "helpsteer3": RowFormat(
        ("prompt|context", "response1|response_1", "response2|response_2", "overall_preference|preference_strength"),
        strength,
    ),
    "safe-rlhf": RowFormat(("prompt", "response_0", "response_1", "better_response_id"), safe_rlhf),
    "arena": RowFormat(("conversation_a", "conversation_b", "winner"), arena),
    "versus": RowFormat(
        (
            "prompt|instruction|question",
            "response_a|answer_a",
            "response_b|answer_b",
            "winner|winner_model_a",
        ),
        versus,
    ),
    "pku": RowFormat(
        ("context", "chosen", "rejected"),
        partial(paired, prompt="context"),
        like=lambda row: _is_dialogue(row["context"].value),
    ),
    "plain": RowFormat(("prompt", "chosen", "rejected"), paired),
    "alpaca": RowFormat(("instruction", "chosen|output", "rejected"), instructed),
    "orca": RowFormat(("question|input|query", "chosen", "rejected"), partial(paired, prompt="question|input|query")),
    "messages": RowFormat(
        ("chosen", "rejected"), paired, like=lambda row: all(_is_dialogue(row[key].value) for key in SIDES)
    ),
    "hh-rlhf": RowFormat(
        ("chosen", "rejected"), hh_rlhf, like=lambda row: all(_is_transcript(row[key]) for key in SIDES)
    ),
    "nectar": RowFormat(("prompt", "answers"), nectar),
    "ultrafeedback": RowFormat(("instruction|prompt", "completions"), ultrafeedback),
    "distilabel": RowFormat(("instruction|prompt|input", "generations", "ratings|rating"), distilabel),
    "helpsteer2": RowFormat(("prompt", "response", "helpfulness"), helpsteer, several=True),
    "unpaired": RowFormat(
        ("prompt|instruction|question", "completion|output|response", "label|kto_tag"),
        partial(
            single, prompt="prompt|instruction|question", completion="completion|output|response", label="label|kto_tag"
        ),
    ),
    "kto": RowFormat(("messages|conversations", "label|kto_tag"), labelled_dialogue),
}

# Why a row with all keys of a format is not in it.
DIFFERENT = {
    "axolotl": "whose messages end with the user's turn",
    "pku": "whose context is a list of turns",
    "messages": "whose chosen and rejected are lists of turns; rows with two texts need a prompt too",
    "hh-rlhf": r"whose chosen and rejected have '\n\nAssistant:'",
}


def parse_row(row: "Row", name: str) -> "RecordPair":
    """The pair in a row of the format `name`, with its system text, history and tools."""
    row_format = ROW_FORMATS[name]
    for keys in missing(row, row_format):
        expected = f"format {name} needs {', '.join(spelled(row_format))}, and the row has {_keys(row)}"
        raise Fault(keys.split("|")[0], f"missing; {expected}; fix the row or set validate_pairs.format")
    pair = row_format.parse(row)
    prompt = with_system(row, with_history(row, pair.prompt))
    tools = tools_of(row["tools"]) if row.has("tools") else pair.tools
    if pair.tools not in (None, tools):
        raise Fault("tools", "the row has input.tools too; keep one of them")
    if pair.chosen is None or pair.rejected is None:
        return pair._replace(prompt=prompt, tools=tools)
    stated = preference(row)
    if stated is not None and pair.preference not in (None, stated):
        column = next(columns[0] for columns in PREFERENCE_COLUMNS if columns[0] in row)
        raise Fault(column, f"{stated:g}, but format {name} makes it {pair.preference:g}; keep one of them")
    return pair._replace(
        prompt=prompt,
        tools=tools,
        preference=pair.preference if stated is None else stated,
        scores=pair.scores or scores(row),
    )


def detect_format(rows: Sequence["Row"]) -> str:
    """The format that fits most of the first rows of a file. Raises `Fault` if none fits any, with the nearest one."""
    fits = {name: sum(_fits(row, row_format) for row in rows) for name, row_format in ROW_FORMATS.items()}
    best = max(fits, key=lambda name: fits[name])
    if fits[best]:
        return best
    first = rows[0]
    nearest = min(ROW_FORMATS, key=lambda name: _distance(first, name))
    lacks = missing(first, ROW_FORMATS[nearest])
    what = (
        f"which also needs {' and '.join(key.replace('|', ' or ') for key in lacks)}"
        if lacks
        else DIFFERENT.get(nearest, "of which one is null here")
    )
    keys = ", ".join(spelled(ROW_FORMATS[nearest]))
    guesses = ", ".join(
        f"{name}: {key if key.isidentifier() else json.dumps(key)}" for name, key in _other_names(first, lacks).items()
    )
    remedy = (
        f"if these are its columns, set validate_pairs.columns to {{{guesses}}}"
        if guesses
        else ("map other names with validate_pairs.columns")
    )
    raise Fault(
        None,
        f"no known format: the keys are {_keys(first)}; the nearest is {nearest} ({keys}), {what}; {remedy} (docs/data.md)",
    )


def _other_names(row: "Row", lacks: list[str]) -> dict[str, str]:
    """The keys of a row that are perhaps other spellings of those that it lacks: "Chosen", "text_chosen" or "reject"."""
    words = {key: re.findall("[a-z]+", key.lower()) for key in row.value}
    found: dict[str, str] = {}
    for keys in lacks:
        name = next((key for key in keys.split("|") if key in MAPPED), None)
        like = [key for key, parts in words.items() if name and any(p == name or _is_form(p, name) for p in parts)]
        if name and len(like) == 1 and like[0] not in found.values():
            found[name] = like[0]
    return found


def _is_form(word: str, name: str) -> bool:
    return difflib.SequenceMatcher(None, word, name).ratio() > 0.8


def missing(row: "Row", row_format: RowFormat) -> list[str]:
    """The keys of a format that a row lacks."""
    return [keys for keys in row_format.keys if not any(key in row for key in keys.split("|"))]


def spelled(row_format: RowFormat) -> list[str]:
    """The keys of a format as people read them."""
    return [key.replace("|", " or ") for key in row_format.keys]


def _fits(row: "Row", row_format: RowFormat) -> bool:
    there = all(any(key in row and row[key].value is not None for key in keys.split("|")) for keys in row_format.keys)
    return there and row_format.like(row)


def _distance(row: "Row", name: str) -> tuple[int, bool, int]:
    """How far a row is from a format: the more keys it has, the nearer; then common formats, and those that need less."""
    keys = missing(row, ROW_FORMATS[name])
    lacks = len(keys) - len(_other_names(row, keys))
    return lacks - len(ROW_FORMATS[name].keys), name not in FIRST_SUGGESTED, lacks


def _keys(row: "Row") -> str:
    return ascii(", ".join(row.names()) or "none")[1:-1][: 2 * EXCERPT]
