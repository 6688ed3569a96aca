"""Pairs: preference rows to tokenised rows, in splits without leaks."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from prefdag.config import FormatPairs
from prefdag.data.chat import ChatTokenizer, Encoded
from prefdag.data.inspection import Change, boundary_joins, changes, examples, leaked
from prefdag.data.splits import SPLITS, check_fractions, split_by_prompt
from prefdag.data.wording import normalised
from prefdag.errors import DataError

logger = logging.getLogger(__name__)

IDS = pa.list_(pa.int32())
PAIRS_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "source": pa.string(),  # "FILE:ROW"
        "prompt": pa.string(),  # in its template, whole
        "chosen": pa.string(),  # null where there is no such response, its ids empty: unpaired rows have one of the two
        "rejected": pa.string(),
        "preference": pa.float64(),  # probability that chosen is preferred
        "prompt_ids": IDS,
        "chosen_ids": IDS,  # ends with EOS, which is not scored where the response was cut
        "rejected_ids": IDS,
        "chosen_truncated": pa.bool_(),
        "rejected_truncated": pa.bool_(),
    }
)
NO_RESPONSE = Encoded([], "", 0)  # a response that there is has an EOS at least


class Formatted(NamedTuple):
    """Pairs ready for training, and what people may want to know of them."""

    splits: dict[str, pa.Table]  # PAIRS_SCHEMA, rows in their first order
    summary: dict[str, Any]
    changes: list[Change]
    examples: list[dict[str, Any]]


def format_rows(table: pa.Table, tokenizer: ChatTokenizer, params: FormatPairs) -> Formatted:
    """Validated pairs in their splits.

    A pair whose responses become the same tokens by the cut says nothing (its loss is ln 2, its gradient 0), nor does a
    response of which nothing is left: such a row is left out and listed.

    Raises:
        DataError: the template refuses a dialogue, too many rows are left out, there are too few prompts for the splits, or
            one of these has no chosen or no rejected response.
        ParamsError: the fractions leave nothing to train on.
    """
    check_fractions("format_pairs", params)
    changed: list[Change] = []
    distinct = []
    rows = table.slice(0, params.max_pairs).to_pylist()
    for row in rows:
        encoded = encode_pair(row, tokenizer, params.max_prompt_tokens, params.max_response_tokens)
        found = changes(row, encoded, tokenizer)
        changed += found
        if not any(each.change == "left out" for each in found):
            distinct.append(encoded)
    if lost := len(rows) - len(distinct):
        first = next(each for each in changed if each.change == "left out")
        message = f"{lost} of {len(rows)} pairs are left out, the first: {first.source}:{first.column}: {first.reason}"
        if lost > params.max_left_out * len(rows):
            raise DataError(f"{message}; raise format_pairs.max_response_tokens, or max_left_out")
        logger.warning("%s", message)
    # The text as it was written, and the tokens that the cut leaves of it: what the model reads must not leak either.
    keys = [(normalised(row["prompt"].text), tuple(row["prompt"].ids)) for row in distinct]
    splits = split_by_prompt(keys, params.val_fraction, params.test_fraction, params.seed)
    by_split = {name: [row for row, split in zip(distinct, splits, strict=True) if split == name] for name in SPLITS}
    for name, part in by_split.items():
        _check_sides(name, part)
    tables = {name: pa.Table.from_pylist([_columns(row) for row in by_split[name]], PAIRS_SCHEMA) for name in SPLITS}
    summary = {
        "template": params.template,
        "max_prompt_tokens": params.max_prompt_tokens,
        "max_response_tokens": params.max_response_tokens,
        "rows": {name: len(by_split[name]) for name in SPLITS},
        "prompts": {name: len({row["prompt"].text for row in by_split[name]}) for name in SPLITS},
        "changes": _counted(changed),
        "leaked": leaked(tables),
        "boundary": boundary_joins(distinct, tokenizer),
        **{
            part: _lengths([row[part] for row in distinct if row[part].ids])
            for part in ("prompt", "chosen", "rejected")
        },
    }
    return Formatted(tables, summary, changed, examples(distinct, tokenizer))


def _counted(changed: Sequence[Change]) -> list[dict[str, Any]]:
    """How many rows each kind of change concerns."""
    counts = Counter((each.change, each.column) for each in changed)
    return [{"change": change, "column": column, "rows": rows} for (change, column), rows in sorted(counts.items())]


def encode_pair(
    row: dict[str, Any], tokenizer: ChatTokenizer, max_prompt_tokens: int, max_response_tokens: int
) -> dict[str, Any]:
    """A validated row with `Encoded` in place of its prompt, chosen and rejected. Raises `DataError`, naming the row."""
    try:
        return row | {
            "prompt": tokenizer.prompt(row["prompt"], max_prompt_tokens),
            **{
                side: NO_RESPONSE if row[side] is None else tokenizer.response(row[side], max_response_tokens)
                for side in ("chosen", "rejected")
            },
        }
    except DataError as error:
        raise DataError(f"{row['source']}: {error}") from None


def _check_sides(split: str, rows: Sequence[dict[str, Any]]) -> None:
    """That a split with rows has responses of either kind: to learn from, to validate on, to compare. Raises `DataError`."""
    for side, kind in (("chosen", "desirable"), ("rejected", "undesirable")):
        if rows and not any(row[side].ids for row in rows):
            raise DataError(
                f"data/validated/pairs.parquet: column {side}: no {kind} response among the {len(rows)} rows of split {split}; "
                "give more of them, or change the fractions or the seed of format_pairs"
            )


def _columns(row: dict[str, Any]) -> dict[str, Any]:
    """An encoded row as `PAIRS_SCHEMA` wants it."""
    parts: dict[str, Encoded] = {part: row[part] for part in ("prompt", "chosen", "rejected")}
    return (
        {name: row[name] for name in ("id", "source", "preference")}
        | {part: encoded.text if encoded.ids else None for part, encoded in parts.items()}
        | {f"{part}_ids": encoded.ids for part, encoded in parts.items()}
        | {f"{part}_truncated": parts[part].truncated for part in ("chosen", "rejected")}
    )


def _lengths(parts: Sequence[Encoded]) -> dict[str, float]:
    """Tokens kept, the share of parts that were cut, and quantiles of the lengths before the cut."""
    lengths = [part.length for part in parts]
    return {
        "tokens": sum(len(part.ids) for part in parts),
        "truncated": round(sum(part.truncated for part in parts) / len(parts), 4),
        **{f"length_p{p}": int(np.percentile(lengths, p, method="inverted_cdf")) for p in (10, 50, 90, 100)},
    }
