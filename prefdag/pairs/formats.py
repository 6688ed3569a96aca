"""Row formats: a record, as read from a file, as a pair; or the `Fault` that says why it is none.

Any format of pairs may say how sure it is that chosen is better, in one of these ways:

    preference                          a probability
    votes_chosen, votes_rejected        how many annotators preferred which
    ratings_chosen, ratings_rejected    a list each, what the same annotators gave to either: the share of them that rated
                                        chosen higher, a tie counting half

Where it says who (`annotator`), all rows of one pair become one: see `annotators.py`.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from prefdag.pairs.records import EXCERPT, REPEATED, Fault

Message = dict[str, str]  # {"role": system|user|assistant, "content": text}

CHAT_ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
SHAREGPT_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
PKU_ROLES = {"human": "user", "assistant": "assistant"}


class Pair(NamedTuple):
    """What a row format reads from one record. See `marks` for what any format may say beside it."""

    prompt: list[Message]
    chosen: str | None
    rejected: str | None
    preference: float = 1.0


class RowFormat(NamedTuple):
    """The keys that a record of this format has, and its reader, which raises `Fault`."""

    keys: tuple[str, ...]
    read: Callable[[dict[str, Any]], Pair]


def marks(row: dict[str, Any]) -> dict[str, str | None]:
    """What any row may say of itself: `annotator`, whose judgement it is (a name or a number), and `source`, as `origin`:
    the collection that it was taken from. None where it does not."""
    said: dict[str, str | None] = {}
    for name, column in (("annotator", "annotator"), ("origin", "source")):
        value = row.get(column)
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # pandas makes 7.0 of a 7 where others have none
        if value in (None, "") or value != value:  # and of none, not a number
            said[name] = None
        elif isinstance(value, int) and not isinstance(value, bool):
            said[name] = str(value)
        else:
            said[name] = needs_text(value, column)
    return said


def recognised(record: dict[str, Any]) -> RowFormat:
    """The format of a record, by its keys. Raises `Fault` with what was looked for and what was found."""
    kind = type(record.get("chosen"))
    for name, row_format in ROW_FORMATS.items():
        if name in ({"plain", "hh-rlhf"} if kind is list else {"messages"}):  # the same keys, other values
            continue
        if all(key in record for key in row_format.keys):
            return row_format
    wanted = "; ".join(f"{name} ({', '.join(row_format.keys)})" for name, row_format in ROW_FORMATS.items())
    raise Fault(None, f"no known format: found {_names(record)}; looked for {wanted}; rename its keys")


def sharegpt(row: dict[str, Any]) -> Pair:
    """`conversations`, `chosen`, `rejected`, whose turns are {"from": human|gpt|system, "value": text}."""
    return _dialogue(row, "sharegpt", ("from", "value"), SHAREGPT_ROLES, {"gpt": "assistant"})


def pku(row: dict[str, Any]) -> Pair:
    """`context`, `chosen`, `rejected`, whose turns are {"role": human|assistant, "text": text}: PKU's processed-hh-rlhf."""
    return _dialogue(row, "pku", ("role", "text"), PKU_ROLES, {"assistant": "assistant"})


def _dialogue(
    row: dict[str, Any], name: str, keys: tuple[str, str], roles: dict[str, str], replies: dict[str, str]
) -> Pair:
    """The turns of a prompt, and a turn for each response."""
    columns = ROW_FORMATS[name].keys
    turns, *responses = _fields(row, name)
    prompt = _messages(turns, columns[0], keys, roles)
    chosen, rejected = (
        _message(response, column, keys, replies)["content"]
        for response, column in zip(responses, columns[1:], strict=True)
    )
    return Pair(prompt, chosen, rejected, _preference(row))


def messages(row: dict[str, Any]) -> Pair:
    """`chosen`, `rejected`: dialogues of {"role", "content"} that differ in the last turn, the reply: UltraFeedback's.

    Where they are the reply alone, `prompt` (as in `plain`) says to what.
    """
    prompts, replies = [], []
    for column, turns in zip(("chosen", "rejected"), _fields(row, "messages"), strict=True):
        dialogue = _turns(turns, column, ("role", "content"), CHAT_ROLES)
        if not dialogue or dialogue[-1]["role"] != "assistant":
            raise Fault(column, f"ends with {_last(dialogue)}; the last turn must be the assistant's")
        prompts.append(dialogue[:-1])
        replies.append(dialogue[-1]["content"])
    if prompts[0] != prompts[1]:
        raise Fault("rejected", "another prompt than that of chosen; both must agree in all turns but the last")
    prompt = prompts[0] if prompts[0] or "prompt" not in row else _text_or_messages(row["prompt"], "prompt")
    return Pair(_prompt(prompt, "chosen"), replies[0], replies[1], _preference(row))


def alpaca(row: dict[str, Any]) -> Pair:
    """`instruction`, `output`, `rejected`; `input`, which follows the instruction behind a blank line."""
    instruction, output, rejected = _fields(row, "alpaca")
    given = "" if row.get("input") is None else needs_text(row["input"], "input")
    asked = "\n\n".join(part for part in (needs_text(instruction, "instruction"), given) if part)
    prompt = [{"role": "user", "content": asked}]
    return Pair(prompt, needs_text(output, "output"), needs_text(rejected, "rejected"), _preference(row))


def hh_rlhf(row: dict[str, Any]) -> Pair:
    r"""`chosen`, `rejected`: transcripts "\n\nHuman: ...\n\nAssistant: ..." of one prompt and its two last replies."""
    prompts, responses = [], []
    for column, transcript in zip(("chosen", "rejected"), _fields(row, "hh-rlhf"), strict=True):
        prompt, mark, response = needs_text(transcript, column).rpartition("\n\nAssistant:")
        if not mark:
            raise Fault(column, r"no '\n\nAssistant:' in it; is validate_pairs.format right?")
        if "\n\nHuman:" in response:
            raise Fault(column, "ends with a human turn; cut it behind the last reply")
        prompts.append(prompt)
        responses.append(response.removeprefix(" "))
    if prompts[0] != prompts[1]:
        raise Fault("rejected", r"another prompt than that of chosen; both must agree up to the last '\n\nAssistant:'")
    before, *turns = re.split(r"\n\n(Human|Assistant):", prompts[0])
    if before:
        raise Fault("chosen", r"text before the first turn; a transcript starts with '\n\nHuman:'")
    roles = {"Human": "user", "Assistant": "assistant"}
    turns_read = [
        {"role": roles[speaker], "content": text.removeprefix(" ")}
        for speaker, text in zip(turns[::2], turns[1::2], strict=True)
    ]
    return Pair(_prompt(turns_read, "chosen"), responses[0], responses[1], _preference(row))


def plain(row: dict[str, Any]) -> Pair:
    """`prompt` (text, or a list of {"role", "content"}), `chosen`, `rejected`."""
    turns, chosen, rejected = _fields(row, "plain")
    prompt = _text_or_messages(turns, "prompt")
    return Pair(prompt, needs_text(chosen, "chosen"), needs_text(rejected, "rejected"), _preference(row))


def unpaired(row: dict[str, Any]) -> Pair:
    """`prompt` (as in `plain`), `completion`, `label`: true (or 1) where it is desirable, false (or 0) where it is not."""
    turns, completion, label = _fields(row, "unpaired")
    prompt, response = _text_or_messages(turns, "prompt"), needs_text(completion, "completion")
    return Pair(prompt, response, None) if _label(label, "label") else Pair(prompt, None, response)


# In the order in which `recognised` looks: what has fewer keys comes later.
ROW_FORMATS: dict[str, RowFormat] = {
    "sharegpt": RowFormat(("conversations", "chosen", "rejected"), sharegpt),
    "pku": RowFormat(("context", "chosen", "rejected"), pku),
    "alpaca": RowFormat(("instruction", "output", "rejected"), alpaca),
    "unpaired": RowFormat(("prompt", "completion", "label"), unpaired),
    "plain": RowFormat(("prompt", "chosen", "rejected"), plain),
    "messages": RowFormat(("chosen", "rejected"), messages),
    "hh-rlhf": RowFormat(("chosen", "rejected"), hh_rlhf),
}


def _fields(row: dict[str, Any], row_format: str) -> list[Any]:
    """The values of a format's keys. A fault names what was looked for and what is there: the format may be the wrong one."""
    keys = ROW_FORMATS[row_format].keys
    for key in keys:
        if key not in row:
            wanted = f"format {row_format} looks for {', '.join(keys)} and found {_names(row)}"
            raise Fault(key, f"missing; {wanted}; mend the row or set validate_pairs.format")
    return [row[key] for key in keys]


def _names(row: dict[str, Any]) -> str:
    return ascii(", ".join(row) or "nothing")[1:-1][: 2 * EXCERPT]


def _text_or_messages(value: Any, column: str) -> list[Message]:
    """A prompt as a list of {"role", "content"}, or as the text of one user turn."""
    if isinstance(value, list):
        return _messages(value, column, ("role", "content"), CHAT_ROLES)
    return [{"role": "user", "content": needs_text(value, column)}]


def _messages(value: Any, column: str, keys: tuple[str, str], roles: dict[str, str]) -> list[Message]:
    return _prompt(_turns(value, column, keys, roles), column)


def _turns(value: Any, column: str, keys: tuple[str, str], roles: dict[str, str]) -> list[Message]:
    if not isinstance(value, list):
        raise Fault(column, f"{_kind(value)} where a list of turns is needed")
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


def _prompt(messages: list[Message], column: str) -> list[Message]:
    if not messages or messages[-1]["role"] != "user":
        remedy = "the last turn before the response must be the user's"
        raise Fault(column, f"the prompt ends with {_last(messages)}; {remedy}")
    return messages


def _last(messages: list[Message]) -> str:
    articles = {"system": "a system turn", "user": "a user turn", "assistant": "an assistant turn"}
    return articles[messages[-1]["role"]] if messages else "no turn"


def needs_object(value: Any, column: str | None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Fault(column, f"{_kind(value)} where an object is needed")
    return value


def needs_text(value: Any, column: str | None) -> str:
    """`value` if it is text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise Fault(column, f"{_kind(value)} where text is needed")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # Bytes that are not UTF-8 arrive here as surrogates, too: see `read_text`.
        where = f"character {error.start + 1}"
        raise Fault(column, f"bytes that are not UTF-8, or a lone surrogate, at {where}; save it as UTF-8") from None
    return value


def _preference(row: dict[str, Any]) -> float:
    """The probability that chosen is preferred, by whichever of `WAYS` the row has; 1 without any."""
    there = [way for way in WAYS if any(key in row for key in way)]
    if not there:
        return 1.0
    if len(there) > 1:
        raise Fault(there[1][0], f"beside {there[0][0]}; keep one of them")
    for key in there[0]:
        if key not in row:
            raise Fault(key, f"missing; {' and '.join(there[0])} go together")
    return WAYS[there[0]](row, *there[0])


def _of_probability(row: dict[str, Any], column: str) -> float:
    return _number(row[column], column)  # its range is for the checks to judge


def _of_votes(row: dict[str, Any], chosen: str, rejected: str) -> float:
    votes = {column: _number(row[column], column) for column in (chosen, rejected)}
    for column, number in votes.items():
        if number < 0:
            raise Fault(column, f"{number:g} votes; write how many annotators preferred this response")
    total = sum(votes.values())
    if not total:
        raise Fault(chosen, "no votes for either response; remove the row, or leave both columns out")
    return votes[chosen] / total


def _of_ratings(row: dict[str, Any], chosen: str, rejected: str) -> float:
    for column in (chosen, rejected):
        if not isinstance(row[column], list):
            raise Fault(column, f"{_kind(row[column])} where a list of ratings is needed, one an annotator")
    if len(row[chosen]) != len(row[rejected]) or not row[chosen]:
        found = f"{len(row[rejected])} ratings beside {len(row[chosen])} of {chosen}"
        raise Fault(rejected, f"{found}; every annotator rates both responses")
    ratings = (
        [_number(value, f"{column}[{i}]") for i, value in enumerate(row[column])] for column in (chosen, rejected)
    )
    return sum(0.5 if a == b else float(a > b) for a, b in zip(*ratings, strict=True)) / len(row[chosen])


WAYS: dict[tuple[str, ...], Callable[..., float]] = {
    ("preference",): _of_probability,
    ("votes_chosen", "votes_rejected"): _of_votes,
    ("ratings_chosen", "ratings_rejected"): _of_ratings,
}


def _number(value: Any, column: str) -> float:
    """`value` as a finite number; text, as CSV has it, will do."""
    if value is REPEATED or isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Fault(column, f"{_kind(value)} where a number is needed; without the column every preference is 1")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Fault(column, "not a finite number; write one, or leave the column out")
    return number


def _label(value: Any, column: str) -> bool:
    """`value` as true or false; 1 and 0 will do, and either as text, as CSV has it."""
    if isinstance(value, str):
        value = {"true": 1, "1": 1, "1.0": 1, "false": 0, "0": 0, "0.0": 0}.get(value.lower(), value)
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise Fault(column, f"{_kind(value)} where true or false is needed; write true for a desirable completion")
    return bool(value)


def _kind(value: Any) -> str:
    """A value's type in the user's words."""
    if value is REPEATED:
        return "the same key twice"
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")
