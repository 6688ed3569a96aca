"""Parsers of rows that score or rank their responses.

Of several responses, the best is chosen and the worst rejected: the first of the best, the last of the worst. The others are
left out. Equal scores are a tie, with the preference 0.5.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefdag.formats.dialogues import Message, dialogue, ends_with_user, reply
from prefdag.formats.faults import Fault
from prefdag.formats.pair import RecordPair
from prefdag.formats.paired import one
from prefdag.formats.values import holds

if TYPE_CHECKING:
    from prefdag.formats.fields import Field, Row

HELPSTEER_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def strength(row: "Row") -> RecordPair:
    """HelpSteer's two responses, and how much better the second is: below 0, the first is chosen; 0 is a tie."""
    number = one(row, "overall_preference|preference_strength").number()
    responses = [_reply_only(one(row, names)) for names in ("response1|response_1", "response2|response_2")]
    better, worse = responses if number <= 0 else responses[::-1]
    prompt = one(row, "prompt|context")
    return RecordPair(_helpsteer_prompt(prompt), better, worse, None if number else 0.5, (abs(number), 0.0))


def shp(row: "Row") -> RecordPair:
    """SHP: `labels` is 1 if A is better. `score_ratio` of votes gives the preference, ratio / (1 + ratio)."""
    sides = [_reply_only(row[name]) for name in ("human_ref_A", "human_ref_B")]
    points = [row[name].number() if row.has(name) else None for name in ("score_A", "score_B")]
    if not row["labels"].label():
        sides.reverse()
        points.reverse()
    ratio = row["score_ratio"].number() if row.has("score_ratio") else None
    if ratio is not None and ratio < 0:
        raise Fault("score_ratio", f"{ratio:g} is not a ratio of votes; fix or remove the row")
    probability = None if ratio is None else ratio / (1 + ratio)
    known = None if points[0] is None or points[1] is None else (points[0], points[1])
    return RecordPair(
        ends_with_user(dialogue(row["history"], "user"), "history"), sides[0], sides[1], probability, known
    )


def nectar(row: "Row") -> RecordPair:
    """`answers` of {"answer", "rank"}, rank 1 being the best."""
    rated = [(each["answer"], -each["rank"].number()) for each in row["answers"].items("answers")]
    return _ranked(row, "prompt", rated, "answers")


def ultrafeedback(row: "Row") -> RecordPair:
    """`completions` of {"response", "overall_score"}."""
    rated = [(each["response"], each["overall_score"].number()) for each in row["completions"].items("completions")]
    return _ranked(row, "instruction|prompt", rated, "completions")


def distilabel(row: "Row") -> RecordPair:
    """`generations`, a list of texts, and `ratings`, a list of numbers or null, in the same order."""
    texts, numbers = row["generations"].items("texts"), one(row, "ratings|rating").items("numbers")
    if len(texts) != len(numbers):
        raise Fault(numbers[0].path if numbers else "ratings", f"{len(numbers)} ratings of {len(texts)} generations")
    rated = [(text, number.number()) for text, number in zip(texts, numbers, strict=True) if holds(number.value)]
    for text, number in zip(texts, numbers, strict=True):
        if not holds(number.value):
            text.take()
    return _ranked(row, "instruction|prompt|input", rated, "generations")


def helpsteer(row: "Row") -> RecordPair:
    """HelpSteer2: consecutive rows with the same `prompt`, each with a `response` and its `helpfulness`."""
    rated = [(each["response"], each["helpfulness"].number()) for each in (row, *row.others)]
    if not row.others:
        raise Fault(
            "prompt", "no row beside this one has the same prompt, and a pair needs two; sort the rows by prompt"
        )
    pair = ranked(_helpsteer_prompt(row["prompt"]), rated, "response")
    for response, _ in rated:
        response.take()
    return pair


def ranked(prompt: list[Message], responses: Sequence[tuple["Field", float]], column: str) -> RecordPair:
    """The best response against the worst: the first of the best, the last of the worst. Equal scores are a tie."""
    if len(responses) < 2:
        raise Fault(
            column, f"{len(responses)} rated {'response' if len(responses) == 1 else 'responses'}; a pair needs two"
        )
    best = max(responses, key=lambda item: item[1])
    worst = min(reversed(responses), key=lambda item: item[1])
    tie = best[1] == worst[1]
    return RecordPair(prompt, _reply_only(best[0]), _reply_only(worst[0]), 0.5 if tie else None, (best[1], worst[1]))


def _ranked(row: "Row", prompt: str, rated: list[tuple["Field", float]], column: str) -> RecordPair:
    """The best against the worst. The texts of the others, which the rule leaves out, count as read."""
    turns = ends_with_user(dialogue(one(row, prompt), "user"), prompt.split("|")[0])
    pair = ranked(turns, rated, column)
    for response, _ in rated:
        response.take()
    return pair


def _reply_only(field: "Field") -> Message:
    before, response = reply(field)
    if before:
        raise Fault(field.path, "a whole dialogue where only the response is needed")
    return response


def _helpsteer_prompt(field: "Field") -> list[Message]:
    """A prompt of HelpSteer: turns, or a text in which <extra_id_1>User and <extra_id_1>Assistant begin the later turns."""
    if isinstance(field.value, str) and HELPSTEER_TURN.search(field.value):
        first, *later = HELPSTEER_TURN.split(field.text())
        roles = {"User": "user", "Assistant": "assistant"}
        turns = [{"role": "user", "content": first}] if first else []
        turns += [{"role": roles[who], "content": text} for who, text in zip(later[::2], later[1::2], strict=True)]
    else:
        turns = dialogue(field, "user")
    return ends_with_user(turns, field.path)
