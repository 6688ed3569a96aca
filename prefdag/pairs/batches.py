"""The validated rows in batches, encoded. Each is encoded once, also where the limits follow from the lengths."""

from array import array
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from prefdag.lifecycle.progress import progress
from prefdag.pairs import turns
from prefdag.pairs.encoding import IDS, NO_RESPONSE, PARTS, encode_pair
from prefdag.runtime.artifacts import count_rows, read_batches
from prefdag.runtime.processes import apply_each

if TYPE_CHECKING:
    from prefdag.config.format_pairs import FormatPairs
    from prefdag.pairs.limits import Limits
    from prefdag.tokenizer.tokenizer import ChatTokenizer

Rows = list[dict[str, Any]]

BATCH = 2_000  # rows in memory at once
CHUNK = 100  # rows that a process encodes at a time
# An encoded row before the cut, from which `_cut` makes one after it.
UNCUT_SCHEMA = pa.schema(
    {
        f"{part}_{name}": kind
        for part in PARTS
        for name, kind in (("ids", IDS), ("text", pa.string()), ("altered", pa.string()))
    }
    | {"unclosed": pa.list_(pa.string())}
)


def batches(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a parquet file, in batches."""
    yield from read_batches(path, BATCH, columns)


def first_rows(source: Path, max_pairs: int | None, columns: list[str] | None = None) -> Iterator[Rows]:
    """The validated rows in batches: all, or of each published split the first `max_pairs`."""
    read: Counter[str | None] = Counter()
    for batch in batches(source, columns):
        published = batch["split"].to_pylist() if "split" in batch.schema.names else [None] * len(batch)
        wanted = []
        for split in published:
            read[split] += 1
            wanted.append(max_pairs is None or read[split] <= max_pairs)
        if any(wanted):
            yield batch.filter(pa.array(wanted)).to_pylist()


def _encode_batches(
    source: Path, max_pairs: int | None, tokenizer: "ChatTokenizer", *lengths: int
) -> Iterator[tuple[Rows, Rows]]:
    """The batches of `first_rows`, each with its rows as `encode_pair` returns them for these limits."""
    total = count_rows(source) if max_pairs is None else sum(map(len, first_rows(source, max_pairs, ["id", "split"])))
    read: deque[Rows] = deque()  # batches that are not yet encoded to their end

    def chunks() -> Iterator[Rows]:
        for rows in first_rows(source, max_pairs):
            read.append(rows)
            yield from (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))

    def encode(rows: Rows) -> Rows:
        return [encode_pair(row, tokenizer, *lengths) for row in rows]

    encoded: Rows = []
    with progress(total, "row", "encoded", delay=2) as bar:
        for part in apply_each(encode, chunks(), total // CHUNK):
            encoded += part
            bar.update(len(part))
            if len(encoded) == len(read[0]):
                yield read.popleft(), encoded
                encoded = []


def measure(
    source: Path, uncut: Path, tokenizer: "ChatTokenizer", params: "FormatPairs"
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Write the encoded rows to `uncut`. Returns the lengths in tokens of all prompts and of all responses."""
    prompts, responses = array("i"), array("i")
    with pq.ParquetWriter(uncut, UNCUT_SCHEMA) as writer:
        for _, encoded in _encode_batches(source, params.max_pairs, tokenizer):
            prompts.extend(row["prompt"].length for row in encoded)
            responses.extend(row[side].length for row in encoded for side in turns.SIDES if row[side].ids)
            writer.write_table(pa.Table.from_pylist([_uncut_columns(row) for row in encoded], UNCUT_SCHEMA))
    return np.frombuffer(prompts, np.int32), np.frombuffer(responses, np.int32)


def encoded_rows(
    source: Path, uncut: Path, tokenizer: "ChatTokenizer", params: "FormatPairs", lengths: "Limits"
) -> Iterator[list[tuple[dict[str, Any], dict[str, Any]]]]:
    """The validated rows in batches, each with itself encoded and cut: from `uncut`, if `measure` wrote it."""
    if not uncut.exists():
        for rows, encoded in _encode_batches(source, params.max_pairs, tokenizer, *lengths):
            yield list(zip(rows, encoded, strict=True))
        return
    with pq.ParquetFile(uncut) as file:
        for group, rows in enumerate(first_rows(source, params.max_pairs)):  # `measure` wrote a group for each batch
            parts = file.read_row_group(group).to_pylist()
            yield [(row, _cut(row, part, tokenizer, *lengths)) for row, part in zip(rows, parts, strict=True)]


def _uncut_columns(row: dict[str, Any]) -> dict[str, Any]:
    """A row that was encoded without a cut, with the columns of `UNCUT_SCHEMA`."""
    names = ("ids", "text", "altered")
    return {f"{part}_{name}": getattr(row[part], name) for part in PARTS for name in names} | {
        "unclosed": row["unclosed"]
    }


def _cut(
    row: dict[str, Any],
    uncut: dict[str, Any],
    tokenizer: "ChatTokenizer",
    max_prompt_tokens: int,
    max_response_tokens: int,
) -> dict[str, Any]:
    """A validated row as `encode_pair` returns it, from its `_uncut_columns`."""
    ids, text, altered = (uncut[f"prompt_{name}"] for name in ("ids", "text", "altered"))
    encoded = row | {
        "prompt": tokenizer.cut_prompt(ids, text, max_prompt_tokens, altered),
        "unclosed": uncut["unclosed"],
    }
    for side in turns.SIDES:
        ids, text, altered = (uncut[f"{side}_{name}"] for name in ("ids", "text", "altered"))
        encoded[side] = (
            tokenizer.cut_response(ids[:-1], text, ids[-1], max_response_tokens, altered) if ids else NO_RESPONSE
        )
    return encoded
