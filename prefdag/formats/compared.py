"""Parsers of rows that have two responses and say which one is better. Equal ones are a tie, with the preference 0.5."""

import re
from typing import TYPE_CHECKING

from prefdag.formats.faults import Fault, shown
from prefdag.formats.paired import one, paired
from prefdag.formats.values import decoded

if TYPE_CHECKING:
    from prefdag.formats.fields import Field, Row
    from prefdag.formats.pair import RecordPair

A, B, TIE = "model_a", "model_b", "tie"
# "a", "model_a" and "response A"; a judge of MT-bench writes "[[A]]".
ONE_SIDE = re.compile(r"(?:\[\[|(?:model|assistant|response|answer|conversation)[ _-]?)?([ab])(?:\]\])?")
EQUAL = {"tie", "tie (bothbad)", "tie (both bad)", "both_bad", "bothbad", "both bad", "both", "draw", "equal", "[[c]]"}


def safe_rlhf(row: "Row") -> "RecordPair":
    """PKU-SafeRLHF: `response_0`, `response_1`, and `better_response_id`, 0 or 1."""
    better = row["better_response_id"].number()
    if better not in (0, 1):
        raise Fault("better_response_id", f"{better:g} is no response; write 0 or 1, or remove the row")
    return _in_order(paired(row, "prompt", "response_0", "response_1"), B if better else A)


def arena(row: "Row") -> "RecordPair":
    """Chatbot Arena: `conversation_a`, `conversation_b`, and the `winner`. The two differ only in the last turn."""
    return _in_order(paired(row, "prompt", "conversation_a", "conversation_b"), _winner(row["winner"]))


def versus(row: "Row") -> "RecordPair":
    """A prompt, two responses, A and B, and the `winner`; or three columns, of which one is 1: `winner_model_a`, ..."""
    prompt, sides = "prompt|instruction|question", ("response_a|answer_a", "response_b|answer_b")
    if row.has("winner"):
        return _in_order(paired(row, prompt, *sides), _winner(row["winner"]))
    votes = [name for name in ("winner_model_a", "winner_model_b", "winner_tie") if row.has(name) and row[name].label()]
    if len(votes) != 1:
        raise Fault(
            "winner_model_a", f"{len(votes)} of winner_model_a, winner_model_b and winner_tie are 1; one must be"
        )
    for names in (prompt, *sides):
        _only_turn(one(row, names))
    return _in_order(paired(row, prompt, *sides), votes[0].removeprefix("winner_"))


def _winner(field: "Field") -> str:
    text = field.text().strip().lower()
    if text in EQUAL:
        return TIE
    side = ONE_SIDE.fullmatch(text)
    if side is None:
        raise Fault(field.path, f"unknown winner {shown(field.text())}; use {A}, {B} or {TIE}")
    return A if side[1] == "a" else B


def _in_order(pair: "RecordPair", winner: str) -> "RecordPair":
    """`pair`, whose responses are those of A and B, with the better one as chosen."""
    if winner == TIE:
        return pair._replace(preference=0.5)
    return pair if winner == A else pair._replace(chosen=pair.rejected, rejected=pair.chosen)


def _only_turn(field: "Field") -> None:
    """Decode a list of texts, one for each turn, that is stored as text: arena-human-preference-55k."""
    texts = field.value
    if isinstance(texts, str) and texts.lstrip().startswith("["):
        try:
            texts = decoded(texts)
        except ValueError:
            return
    if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
        if len(texts) != 1:
            raise Fault(
                field.path,
                f"{len(texts)} turns; the responses of the earlier ones differ, so only rows of one turn are pairs; remove it",
            )
        field.value = texts[0]
