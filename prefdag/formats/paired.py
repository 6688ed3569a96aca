"""Parsers of rows that say which response is chosen, or whether a single one is desirable."""

from typing import TYPE_CHECKING

from prefdag.formats.context import tools_of
from prefdag.formats.dialogues import Message, dialogue, ends_with_user, reply, transcript
from prefdag.formats.faults import Fault, shown
from prefdag.formats.pair import RecordPair

if TYPE_CHECKING:
    from prefdag.formats.fields import Field, Row


def paired(row: "Row", prompt: str = "prompt", chosen: str = "chosen", rejected: str = "rejected") -> RecordPair:
    """A prompt and two responses, each as text, a turn or a whole dialogue. Names may be alternatives: "a|b".

    If the responses are whole dialogues, they differ only in the last turn, and a prompt beside them must agree with them.
    """
    sides = [one(row, names) for names in (chosen, rejected)]
    (before, better), (other, worse) = (reply(field) for field in sides)
    if before != other:
        raise Fault(sides[1].path, f"not the same prompt as {sides[0].path}; the two may differ only in the last turn")
    return RecordPair(_whole_prompt(row, prompt, before, sides[0]), better, worse)


def instructed(
    row: "Row", prompt: str = "instruction", chosen: str = "chosen", rejected: str = "rejected"
) -> RecordPair:
    """Alpaca's: an `instruction`, and an `input` that follows it after a blank line. `chosen` goes before `output`."""
    output = "output" if chosen == "chosen" and not row.has("chosen") and "output" in row else chosen
    pair = paired(row, prompt, output, rejected)
    return pair._replace(prompt=_with_input(row, pair.prompt))


def single(row: "Row", prompt: str, completion: str, label: str) -> RecordPair:
    """One response, desirable or not."""
    field = one(row, completion)
    before, response = reply(field)
    whole = _whole_prompt(row, prompt, before, field)
    if "instruction" in row:
        whole = _with_input(row, whole)
    return RecordPair(whole, response, None) if one(row, label).label() else RecordPair(whole, None, response)


def labelled_dialogue(row: "Row") -> RecordPair:
    """`messages` or `conversations` that end with the response, and `label` or `kto_tag`."""
    field = one(row, "messages|conversations")
    before, response = reply(field)
    ends_with_user(before, field.path)
    return (
        RecordPair(before, response, None) if one(row, "label|kto_tag").label() else RecordPair(before, None, response)
    )


def openai(row: "Row") -> RecordPair:
    """`input` with `messages` and `tools`, `preferred_output`, `non_preferred_output`: OpenAI's preference files."""
    (before, better), (other, worse) = reply(row["preferred_output"]), reply(row["non_preferred_output"])
    if before or other:
        raise Fault(
            "preferred_output" if before else "non_preferred_output", "more than one turn; write the response only"
        )
    prompt = dialogue(row["input"]["messages"], "user")
    tools = tools_of(row["input"]["tools"]) if row["input"].has("tools") else None
    return RecordPair(ends_with_user(prompt, "input.messages"), better, worse, tools=tools)


def hh_rlhf(row: "Row") -> RecordPair:
    r"""`chosen`, `rejected`: transcripts "\n\nHuman: ...\n\nAssistant: ..." that differ only in the last reply."""
    prompts, responses = [], []
    for column in ("chosen", "rejected"):
        prompt, separator, response = row[column].text().rpartition("\n\nAssistant:")
        if not separator:
            raise Fault(column, r"has no '\n\nAssistant:'; check validate_pairs.format")
        if "\n\nHuman:" in response:
            raise Fault(column, "ends with a human turn; remove what follows the last reply")
        prompts.append(prompt)
        responses.append({"role": "assistant", "content": response.removeprefix(" ")})
    if prompts[0] != prompts[1]:
        raise Fault(
            "rejected", r"not the same prompt as chosen; the two may differ only after the last '\n\nAssistant:'"
        )
    turns = transcript(prompts[0], "chosen")
    chosen, rejected = responses
    return RecordPair(ends_with_user(turns, "chosen"), chosen, rejected)


def agreeing(stated: list[Message], before: list[Message], column: str, other: str) -> list[Message]:
    """The whole prompt, `stated` in one column, of which another has the turns `before` the response.

    One may have a system turn, earlier turns or later ones that the other lacks, or `before` goes on where `stated` ends.
    Raises `Fault` if they contradict each other.
    """
    (system, own), (other_system, turns) = _apart(stated), _apart(before)
    longer, shorter = sorted((_contents(own), _contents(turns)), key=len, reverse=True)
    if shorter not in (longer[: len(shorter)], longer[len(longer) - len(shorter) :]):
        if own and turns and own[-1]["role"] != "assistant" == turns[0]["role"]:
            return stated + turns  # the responses go on for several turns, of which only the last one differs
        raise _contradiction(column, own, other, turns)
    if system and other_system and _contents(system) != _contents(other_system):
        raise _contradiction(column, system, other, other_system)
    return (other_system or system) + (turns if len(turns) >= len(own) else own)


def _whole_prompt(row: "Row", names: str, before: list[Message], response: "Field") -> list[Message]:
    """The prompt in the column of one of `names`, if there is one, and in the turns `before` the response."""
    whole, column = before, response.path
    for field in (row.one_of(*names.split("|")), row["prompt"] if row.has("prompt") else None):
        if field is not None and not field.is_read:
            stated = dialogue(field, "user")
            whole = agreeing(stated, whole, field.path, column)
            column = column if before else field.path
    return ends_with_user(whole, column)


def _contradiction(column: str, turns: list[Message], other: str, others: list[Message]) -> Fault:
    """The fault that names the last turns of two prompts."""
    ours, theirs = (shown(each[-1]["content"]) if each else "nothing" for each in (turns, others))
    return Fault(
        column, f"differs from the turns before the response in {other}: {ours} and {theirs}; keep one of them"
    )


def _with_input(row: "Row", prompt: list[Message]) -> list[Message]:
    """`prompt` with the text in `input` after its last turn."""
    if not row.has("input") or row["input"].is_read:
        return prompt
    last = prompt[-1]
    text = "\n\n".join(part for part in (last["content"], row["input"].text()) if part)
    return [*prompt[:-1], last | {"content": text}]


def _apart(turns: list[Message]) -> tuple[list[Message], list[Message]]:
    """The system turn in front, if there is one, and the other turns."""
    return (turns[:1], turns[1:]) if turns and turns[0]["role"] == "system" else ([], turns)


def _contents(turns: list[Message]) -> list[tuple[str | None, ...]]:
    """What turns are compared by: white space around a text is no difference."""
    return [(turn["role"], turn["content"].strip(), turn.get("extra")) for turn in turns]


def one(row: "Field", names: str) -> "Field":
    """The field with one of `names`, "a|b"."""
    field = row.one_of(*names.split("|"))
    assert field is not None, "parse_row checks the keys"
    return field
