"""Tokenizes rows of eval sets for scoring."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from prefdag.lifecycle.errors import DataError
from prefdag.text.scoring.packing import Group

if TYPE_CHECKING:
    from prefdag.pairs.eval_sets import EvalRow
    from prefdag.pairs.limits import Limits
    from prefdag.tokenizer.tokenizer import ChatTokenizer


class EncodedRow(NamedTuple):
    """A tokenized row, scored by log p(response_ids | prompt_ids), without its last token if `end_scored` is False."""

    prompt_ids: list[int]
    response_ids: list[int]
    end_scored: bool


def encode_row(
    row: "EvalRow",
    tokenizer: "ChatTokenizer",
    max_prompt_tokens: int,
    max_response_tokens: int,
    response: str | None = None,
) -> EncodedRow:
    """Tokenize a row with its right response, or with `response`. Raises `DataError` that names the row.

    A dialogue and its answer are formatted by the model's template. Text to be continued is used as it is, and the end after
    it is not scored, since no turn ends there.
    """
    text = row.response if response is None else response
    try:
        if isinstance(row.prompt, str):
            prompt = tokenizer.raw_prompt(row.prompt, max_prompt_tokens)
            answer = tokenizer.response(text, max_response_tokens)
        else:
            dialogue = tokenizer.dialogue(row.prompt, row.tools)
            prompt = dialogue.prompt(max_prompt_tokens)
            turn = {"role": "assistant", "content": text, **row.extra}
            answer = dialogue.response(turn, max_response_tokens)
    except DataError as error:
        raise DataError(f"{row.source}: {error}") from None
    return EncodedRow(prompt.ids, answer.ids, not isinstance(row.prompt, str) and not answer.truncated)


def eval_groups(rows: Sequence["EvalRow"], tokenizer: "ChatTokenizer", limits: "Limits") -> list[Group]:
    """Each question of an eval set with its right response, truncated like the pairs."""
    groups = []
    for row in rows:
        encoded = encode_row(row, tokenizer, limits.max_prompt_tokens, limits.max_response_tokens)
        response = encoded.response_ids if encoded.end_scored else encoded.response_ids[:-1]
        groups.append(Group(encoded.prompt_ids, (response,)))
    return groups
