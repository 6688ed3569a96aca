"""Pairs: preference rows to tokenised rows, in splits without leaks.

Rows are read and written in batches, twice: once to encode them all, and, when every prompt is known and dealt to a split,
once more to sort them. What is kept of a row in between is a few numbers.
"""

import csv
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from prefdag.pairs.inspection import Change, boundary_joins, changes, example
from prefdag.pairs.ngrams import normalised
from prefdag.pairs.splits import SPLITS, check_fractions, digest, split_by_prompt
from prefdag.pairs.tokenizer import ChatTokenizer, Encoded
from prefdag.runtime.errors import DataError

if TYPE_CHECKING:
    from prefdag.config.format_pairs import FormatPairs

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
PARTS = ("prompt", "chosen", "rejected")
BATCH = 2_000  # rows in memory at once
BOUNDARIES = 2_000  # rows whose boundary is looked at, evenly spaced: the share is what matters
NO_RESPONSE = Encoded([], "", 0)  # a response that there is has an EOS at least


class Formatted(NamedTuple):
    """What people may want to know of the pairs."""

    summary: dict[str, Any]
    examples: list[dict[str, Any]]


class Encodings(NamedTuple):
    """What the second pass needs of the rows that stay, and what is said of them."""

    keys: npt.NDArray[np.uint64]  # (rows, 3), see `_keys`
    kept: dict[str, npt.NDArray[np.int32]]  # tokens by part, (rows,); 0: there is no such response
    lengths: dict[str, npt.NDArray[np.int32]]  # before the cut
    left_out: int
    first_left_out: Change | None
    changes: Counter[tuple[str, str]]


def format_pairs(source: Path, out: Path, changed: Path, tokenizer: ChatTokenizer, params: "FormatPairs") -> Formatted:
    """Write validated pairs in their splits: `out`/train.parquet and so on, of `PAIRS_SCHEMA`, rows in their first order.

    A pair whose responses become the same tokens by the cut says nothing (its loss is ln 2, its gradient 0), nor does a
    response of which nothing is left: such a row is left out and listed.

    Args:
        out: a folder that is there.
        changed: the CSV of `Change` to write.

    Raises:
        DataError: the template refuses a dialogue, too many rows are left out, there are too few prompts for the splits, or
            one of these has no chosen or no rejected response.
        ParamsError: the fractions leave nothing to train on.
    """
    check_fractions("format_pairs", params)
    everything = out / "everything.parquet"
    found = _encode(source, everything, changed, tokenizer, params)
    n = len(found.keys)
    if found.first_left_out:
        each = found.first_left_out
        message = f"{found.left_out} of {n + found.left_out} pairs are left out, the first: "
        message += f"{each.source}:{each.column}: {each.reason}"
        if found.left_out > params.max_left_out * (n + found.left_out):
            raise DataError(f"{message}; raise format_pairs.max_response_tokens, or max_left_out")
        logger.warning("%s", message)
    splits = split_by_prompt(found.keys[:, :2], params.val_fraction, params.test_fraction)
    _check_sides(splits, found.kept)
    by_length = np.argsort(sum(found.kept.values()), kind="stable")
    picked = list(dict.fromkeys(by_length[[0, n // 2, n - 1]].tolist()))  # the shortest, the median and the longest
    shown, joined = _deal(everything, out, splits, picked, tokenizer)
    everything.unlink()
    summary = {
        "template": params.template,
        "max_prompt_tokens": params.max_prompt_tokens,
        "max_response_tokens": params.max_response_tokens,
        "rows": {name: int((splits == name).sum()) for name in SPLITS},
        "prompts": {name: len(np.unique(found.keys[splits == name, 2])) for name in SPLITS},
        "changes": [{"change": c, "column": part, "rows": rows} for (c, part), rows in sorted(found.changes.items())],
        "leaked": _leaked(out),
        "boundary": {
            "responses": len(joined),
            "joined": sum(joined),
            "share": round(sum(joined) / max(1, len(joined)), 4),
        },
        **{part: _lengths(found.kept[part], found.lengths[part]) for part in PARTS},
    }
    return Formatted(summary, [shown[row] for row in picked])


def batches(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a parquet file, some at a time."""
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(BATCH, columns=columns)


def _encode(source: Path, out: Path, changed: Path, tokenizer: ChatTokenizer, params: "FormatPairs") -> Encodings:
    """The first pass: every row that stays, encoded, to `out`; what was changed in it, to `changed`."""
    keys: list[npt.NDArray[np.uint64]] = []
    kept: list[npt.NDArray[np.int32]] = []
    lengths: list[npt.NDArray[np.int32]] = []
    left_out, first, counts, read = 0, None, Counter[tuple[str, str]](), 0
    with pq.ParquetWriter(out, PAIRS_SCHEMA) as writer, changed.open("w", encoding="utf-8", newline="") as file:
        listing = csv.writer(file, lineterminator="\n")
        listing.writerow(Change._fields)
        for batch in batches(source):
            rows = batch.to_pylist()[: None if params.max_pairs is None else params.max_pairs - read]
            if not rows:
                break
            read += len(rows)
            distinct = []
            for row in rows:
                encoded = encode_pair(row, tokenizer, params.max_prompt_tokens, params.max_response_tokens)
                said = changes(row, encoded, tokenizer)
                listing.writerows(said)
                counts.update((each.change, each.column) for each in said)
                if said and said[0].change == "left out":
                    left_out, first = left_out + 1, first or said[0]
                else:
                    distinct.append(encoded)
            if distinct:
                writer.write_table(pa.Table.from_pylist([columns_of(row) for row in distinct], PAIRS_SCHEMA))
                keys.append(np.array([_keys(row["prompt"], params.seed) for row in distinct], dtype=np.uint64))
                kept.append(np.array([[len(row[part].ids) for part in PARTS] for row in distinct], dtype=np.int32))
                lengths.append(np.array([[row[part].length for part in PARTS] for row in distinct], dtype=np.int32))
    none = np.empty((0, 3))
    n_kept, n_before = (
        dict(zip(PARTS, np.concatenate([none.astype(np.int32), *each]).T, strict=True)) for each in (kept, lengths)
    )
    return Encodings(np.concatenate([none.astype(np.uint64), *keys]), n_kept, n_before, left_out, first, counts)


def _keys(prompt: Encoded, seed: int) -> tuple[int, int, int]:
    """What must not stand in two splits, and the prompt as it stands.

    The first is the text as it was written, the second the tokens that the cut leaves of it: what the model reads must not
    leak either. The seed draws the first, by which prompts are dealt.
    """
    return digest(normalised(prompt.text), seed), digest(tuple(prompt.ids)), digest(prompt.text)


def _deal(
    everything: Path, out: Path, splits: npt.NDArray[np.str_], picked: list[int], tokenizer: ChatTokenizer
) -> tuple[dict[int, dict[str, Any]], list[bool]]:
    """The second pass: every row into its split. Returns the rows `picked`, to be shown, and what boundaries do."""
    shown: dict[int, dict[str, Any]] = {}
    joined: list[bool] = []
    writers = {name: pq.ParquetWriter(out / f"{name}.parquet", PAIRS_SCHEMA) for name in SPLITS}
    try:
        first = 0
        for batch in batches(everything):
            table = pa.Table.from_batches([batch], PAIRS_SCHEMA)
            home = splits[first : first + len(table)]
            for name, writer in writers.items():
                part = table.filter(pa.array(home == name))
                if len(part):
                    writer.write_table(part)
            looked_at = range(-first % (1 + len(splits) // BOUNDARIES), len(table), 1 + len(splits) // BOUNDARIES)
            for place in looked_at:
                joined += boundary_joins(table.slice(place, 1).to_pylist()[0], tokenizer)
            for row in picked:
                if 0 <= row - first < len(table):
                    shown[row] = example(table.slice(row - first, 1).to_pylist()[0], tokenizer)
            first += len(table)
    finally:
        for writer in writers.values():
            writer.close()
    return shown, joined


def _check_sides(splits: npt.NDArray[np.str_], kept: dict[str, npt.NDArray[np.int32]]) -> None:
    """That a split with rows has responses of either kind: to learn from, to validate on, to compare. Raises `DataError`."""
    for split in SPLITS:
        for side, kind in (("chosen", "desirable"), ("rejected", "undesirable")):
            rows = kept[side][splits == split]
            if len(rows) and not rows.any():
                raise DataError(
                    f"data/validated/pairs.parquet: column {side}: no {kind} response among the {len(rows)} rows of split "
                    f"{split}; give more of them, or change the fractions or the seed of format_pairs"
                )


def _leaked(folder: Path) -> dict[str, int]:
    """How many rows of each split but train have a prompt, `normalised`, that stands in train: of what was written."""
    prompts = {
        name: np.array(
            [
                digest(normalised(text))
                for batch in batches(folder / f"{name}.parquet", ["prompt"])
                for text in batch["prompt"].to_pylist()
            ],
            dtype=np.uint64,
        )
        for name in SPLITS
    }
    train = prompts.pop("train")
    return {name: int(np.isin(texts, train).sum()) for name, texts in prompts.items()}


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


def columns_of(row: dict[str, Any]) -> dict[str, Any]:
    """An encoded row as `PAIRS_SCHEMA` wants it."""
    parts: dict[str, Encoded] = {part: row[part] for part in ("prompt", "chosen", "rejected")}
    return (
        {name: row[name] for name in ("id", "source", "preference")}
        | {part: encoded.text if encoded.ids else None for part, encoded in parts.items()}
        | {f"{part}_ids": encoded.ids for part, encoded in parts.items()}
        | {f"{part}_truncated": parts[part].truncated for part in ("chosen", "rejected")}
    )


def _lengths(kept: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]) -> dict[str, float]:
    """Tokens kept, the share of those there that were cut, and quantiles of their lengths before the cut."""
    there = kept > 0
    kept, lengths = kept[there], lengths[there]
    return {
        "tokens": int(kept.sum()),
        "truncated": round(float((kept < lengths).mean()), 4),
        **{f"length_p{p}": int(np.percentile(lengths, p, method="inverted_cdf")) for p in (10, 50, 90, 100)},
    }
