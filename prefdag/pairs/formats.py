"""Row formats: parse a record of a file into a pair, or raise the `Fault` that says why it is not one.

Rows of every paired format may give the probability that chosen is better, in one of these ways:

    preference                          the probability
    votes_chosen, votes_rejected        how many annotators preferred each
    ratings_chosen, ratings_rejected    two lists of ratings by the same annotators: the share of annotators who rated chosen
                                        higher, where a tie counts half

If rows name an `annotator`, all rows of one pair are merged; see `annotators.py`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from prefdag.pairs.records import EXCERPT, Fault
from prefdag.pairs.values import kind, needs_label, needs_object, needs_text, preference

Message = dict[str, str]  # {"role": system|user|assistant, "content": text}

CHAT_ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
SHAREGPT_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
PKU_ROLES = {"human": "user", "assistant": "assistant"}


class ParsedPair(NamedTuple):
    """The pair in one record. `attribution` reads the other columns that any format may have."""

    prompt: list[Message]
    chosen: str | None
    rejected: str | None
    preference: float = 1.0


class RowFormat(NamedTuple):
    """The keys of a record in this format, and the function that parses it, which raises `Fault`."""

    keys: tuple[str, ...]
    parse: Callable[[dict[str, Any]], ParsedPair]


def attribution(row: dict[str, Any]) -> dict[str, str | None]:
    """The optional columns `annotator` (a name or a number) and, as `origin`, `source`: the collection a row is from.

    None for a column that the row does not have.
    """
    values: dict[str, str | None] = {}
    for name, column in (("annotator", "annotator"), ("origin", "source")):
        value = row.get(column)
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # pandas turns 7 into 7.0 if other rows have none
        if value in (None, "") or value != value:  # and none into NaN
            values[name] = None
        elif isinstance(value, int) and not isinstance(value, bool):
            values[name] = str(value)
        else:
            values[name] = needs_text(value, column)
    return values


def detect_format(record: dict[str, Any]) -> RowFormat:
    """The format of a record, by its keys. Raises `Fault` with the record's keys and those of every format."""
    as_lists = isinstance(record.get("chosen"), list)
    for name, row_format in ROW_FORMATS.items():
        if name in ({"plain", "hh-rlhf"} if as_lists else {"messages"}):  # the same keys with other values
            continue
        if all(key in record for key in row_format.keys):
            return row_format
    expected = "; ".join(f"{name} ({', '.join(row_format.keys)})" for name, row_format in ROW_FORMATS.items())
    raise Fault(None, f"unknown format: the keys are {_keys(record)}; rename them to those of one format: {expected}")


def sharegpt(row: dict[str, Any]) -> ParsedPair:
    """`conversations`, `chosen`, `rejected`, with turns {"from": human|gpt|system, "value": text}."""
    return _dialogue(row, "sharegpt", ("from", "value"), SHAREGPT_ROLES, {"gpt": "assistant"})


def pku(row: dict[str, Any]) -> ParsedPair:
    """`context`, `chosen`, `rejected`, with turns {"role": human|assistant, "text": text}: PKU's processed-hh-rlhf."""
    return _dialogue(row, "pku", ("role", "text"), PKU_ROLES, {"assistant": "assistant"})


def _dialogue(
    row: dict[str, Any], name: str, keys: tuple[str, str], roles: dict[str, str], reply_roles: dict[str, str]
) -> ParsedPair:
    """A prompt of several turns, and one turn for each response."""
    columns = ROW_FORMATS[name].keys
    turns, *responses = _fields(row, name)
    prompt = _prompt(_turns(turns, columns[0], keys, roles), columns[0])
    chosen, rejected = (
        _message(response, column, keys, reply_roles)["content"]
        for response, column in zip(responses, columns[1:], strict=True)
    )
    return ParsedPair(prompt, chosen, rejected, preference(row))


def messages(row: dict[str, Any]) -> ParsedPair:
    """`chosen`, `rejected`: dialogues of {"role", "content"} that differ only in the last turn, the reply: UltraFeedback's.

    If they consist of the reply alone, `prompt` (as in `plain`) has the turns before it.
    """
    prompts, replies = [], []
    for column, turns in zip(("chosen", "rejected"), _fields(row, "messages"), strict=True):
        dialogue = _turns(turns, column, ("role", "content"), CHAT_ROLES)
        if not dialogue or dialogue[-1]["role"] != "assistant":
            raise Fault(column, f"ends with {_last_role(dialogue)}; the last turn must be the assistant's")
        prompts.append(dialogue[:-1])
        replies.append(dialogue[-1]["content"])
    if prompts[0] != prompts[1]:
        raise Fault("rejected", "not the same prompt as chosen; the two may differ only in the last turn")
    prompt = prompts[0] if prompts[0] or "prompt" not in row else _text_or_turns(row["prompt"], "prompt")
    return ParsedPair(_prompt(prompt, "chosen"), replies[0], replies[1], preference(row))


def alpaca(row: dict[str, Any]) -> ParsedPair:
    """`instruction`, `output`, `rejected`; and `input`, which is added to the instruction after a blank line."""
    instruction, output, rejected = _fields(row, "alpaca")
    context = "" if row.get("input") is None else needs_text(row["input"], "input")
    content = "\n\n".join(part for part in (needs_text(instruction, "instruction"), context) if part)
    prompt = [{"role": "user", "content": content}]
    return ParsedPair(prompt, needs_text(output, "output"), needs_text(rejected, "rejected"), preference(row))


def hh_rlhf(row: dict[str, Any]) -> ParsedPair:
    r"""`chosen`, `rejected`: transcripts "\n\nHuman: ...\n\nAssistant: ..." that differ only in the last reply."""
    prompts, responses = [], []
    for column, transcript in zip(("chosen", "rejected"), _fields(row, "hh-rlhf"), strict=True):
        prompt, separator, response = needs_text(transcript, column).rpartition("\n\nAssistant:")
        if not separator:
            raise Fault(column, r"has no '\n\nAssistant:'; check validate_pairs.format")
        if "\n\nHuman:" in response:
            raise Fault(column, "ends with a human turn; remove what follows the last reply")
        prompts.append(prompt)
        responses.append(response.removeprefix(" "))
    if prompts[0] != prompts[1]:
        raise Fault(
            "rejected", r"not the same prompt as chosen; the two may differ only after the last '\n\nAssistant:'"
        )
    before, *turns = re.split(r"\n\n(Human|Assistant):", prompts[0])
    if before:
        raise Fault("chosen", r"text before the first turn; a transcript starts with '\n\nHuman:'")
    roles = {"Human": "user", "Assistant": "assistant"}
    dialogue = [
        {"role": roles[speaker], "content": text.removeprefix(" ")}
        for speaker, text in zip(turns[::2], turns[1::2], strict=True)
    ]
    return ParsedPair(_prompt(dialogue, "chosen"), responses[0], responses[1], preference(row))


def plain(row: dict[str, Any]) -> ParsedPair:
    """`prompt` (text, or a list of {"role", "content"}), `chosen`, `rejected`."""
    turns, chosen, rejected = _fields(row, "plain")
    prompt = _text_or_turns(turns, "prompt")
    return ParsedPair(prompt, needs_text(chosen, "chosen"), needs_text(rejected, "rejected"), preference(row))


def unpaired(row: dict[str, Any]) -> ParsedPair:
    """`prompt` (as in `plain`), `completion`, and `label`: true (or 1) if it is desirable, else false (or 0)."""
    turns, completion, label = _fields(row, "unpaired")
    prompt, response = _text_or_turns(turns, "prompt"), needs_text(completion, "completion")
    return ParsedPair(prompt, response, None) if needs_label(label, "label") else ParsedPair(prompt, None, response)


# In the order in which `detect_format` tries them: formats with fewer keys come later.
ROW_FORMATS: Mapping[str, RowFormat] = {
    "sharegpt": RowFormat(("conversations", "chosen", "rejected"), sharegpt),
    "pku": RowFormat(("context", "chosen", "rejected"), pku),
    "alpaca": RowFormat(("instruction", "output", "rejected"), alpaca),
    "unpaired": RowFormat(("prompt", "completion", "label"), unpaired),
    "plain": RowFormat(("prompt", "chosen", "rejected"), plain),
    "messages": RowFormat(("chosen", "rejected"), messages),
    "hh-rlhf": RowFormat(("chosen", "rejected"), hh_rlhf),
}


def _fields(row: dict[str, Any], row_format: str) -> list[Any]:
    """The values of a format's keys. If one is missing, the fault lists all keys, as the format may be the wrong one."""
    keys = ROW_FORMATS[row_format].keys
    for key in keys:
        if key not in row:
            expected = f"format {row_format} needs {', '.join(keys)}, and the row has {_keys(row)}"
            raise Fault(key, f"missing; {expected}; fix the row or set validate_pairs.format")
    return [row[key] for key in keys]


def _keys(row: dict[str, Any]) -> str:
    return ascii(", ".join(row) or "none")[1:-1][: 2 * EXCERPT]


def _text_or_turns(value: Any, column: str) -> list[Message]:
    """A prompt as a list of {"role", "content"}, or as the text of one user turn."""
    if isinstance(value, list):
        return _prompt(_turns(value, column, ("role", "content"), CHAT_ROLES), column)
    return [{"role": "user", "content": needs_text(value, column)}]


def _turns(value: Any, column: str, keys: tuple[str, str], roles: dict[str, str]) -> list[Message]:
    if not isinstance(value, list):
        raise Fault(column, f"{kind(value)} where a list of turns is needed")
    return [_message(turn, f"{column}[{i}]", keys, roles) for i, turn in enumerate(value)]


def _message(value: Any, column: str, keys: tuple[str, str], roles: dict[str, str]) -> Message:
    turn = needs_object(value, column)
    for key in keys:
        if key not in turn:
            raise Fault(f"{column}.{key}", f"missing; a turn needs {keys[0]} and {keys[1]}")
    role, content = (needs_text(turn[key], f"{column}.{key}") for key in keys)
    if role not in roles:
        raise Fault(f"{column}.{keys[0]}", f"unknown role {role[:EXCERPT]!r}; use {', '.join(roles)}")
    return {"role": roles[role], "content": content}


def _prompt(turns: list[Message], column: str) -> list[Message]:
    """`turns`, if the last one is the user's."""
    if not turns or turns[-1]["role"] != "user":
        remedy = "the last turn before the response must be the user's"
        raise Fault(column, f"the prompt ends with {_last_role(turns)}; {remedy}")
    return turns


def _last_role(turns: list[Message]) -> str:
    names = {"system": "a system turn", "user": "a user turn", "assistant": "an assistant turn"}
    return names[turns[-1]["role"]] if turns else "no turn"
