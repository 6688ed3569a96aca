"""A validated pair as token ids: what data/pairs/*.parquet has of each row."""

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from prefdag.lifecycle.errors import DataError
from prefdag.pairs import turns
from prefdag.tokenizer.dialogue import Encoded

if TYPE_CHECKING:
    from prefdag.tokenizer.tokenizer import ChatTokenizer

IDS = pa.list_(pa.int32())
PAIRS_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "source": pa.string(),  # "FILE:ROW"
        "prompt": pa.string(),  # in its template, before the cut
        "chosen": pa.string(),  # null, with empty ids, if the row has no such response: unpaired rows have one of the two
        "rejected": pa.string(),
        "preference": pa.float64(),  # probability that chosen is preferred
        "prompt_ids": IDS,
        "chosen_ids": IDS,  # ends with the end of the turn, which is not scored if the response was cut
        "rejected_ids": IDS,
        "chosen_truncated": pa.bool_(),
        "rejected_truncated": pa.bool_(),
    }
)
PARTS = ("prompt", *turns.SIDES)
NO_RESPONSE = Encoded([], "", 0)  # an actual response has at least its end


def encode_pair(
    row: dict[str, Any],
    tokenizer: "ChatTokenizer",
    max_prompt_tokens: int | None = None,
    max_response_tokens: int | None = None,
) -> dict[str, Any]:
    """A validated row with its prompt, chosen and rejected `Encoded`, and `unclosed`, the blocks that responses leave open.

    Raises:
        DataError: the template rejects or ignores a part of the row. The error names the row and the column.
    """
    column = ""
    try:
        dialogue = tokenizer.dialogue(turns.messages(row["prompt"]), turns.tools(row))
        encoded = row | {"prompt": dialogue.prompt(max_prompt_tokens), "unclosed": []}
        for side in turns.SIDES:
            column = f" {side}:"
            turn = turns.response(row, side)
            encoded[side] = NO_RESPONSE if turn is None else dialogue.response(turn, max_response_tokens)
            if turn is not None and (block := dialogue.unclosed(encoded[side])):
                encoded["unclosed"].append(block)
    except DataError as error:
        raise DataError(f"{row['source']}:{column} {error}") from None
    return encoded


def columns_of(row: dict[str, Any]) -> dict[str, Any]:
    """An encoded row with the columns of `PAIRS_SCHEMA`."""
    parts: dict[str, Encoded] = {part: row[part] for part in PARTS}
    return (
        {name: row[name] for name in ("id", "source", "preference")}
        | {part: encoded.text if encoded.ids else None for part, encoded in parts.items()}
        | {f"{part}_ids": encoded.ids for part, encoded in parts.items()}
        | {f"{part}_truncated": parts[part].truncated for part in ("chosen", "rejected")}
    )
