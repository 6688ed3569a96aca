"""Read a raw file (JSON, JSON lines, CSV, TSV, parquet, Arrow) as numbered records, each of them any JSON value.

A record that cannot be read is replaced by a `Fault`, and reading goes on. If the rest of a file cannot be read, so that it is
unknown how many rows are lost, a `DataError` is raised.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefdag.formats.faults import EXCERPT, Fault
from prefdag.formats.files import delimiter, read_text, split_of_name
from prefdag.formats.values import JSON
from prefdag.lifecycle.errors import DataError

Record = tuple[int | str, Any]  # row number from 1, or SPLIT:NUMBER; and any JSON value or a Fault

ARROW_FILE = b"ARROW1"
# Keys of an object that holds the rows of a whole file, beside the names of splits.
LISTS_OF_ROWS = {"data", "rows", "examples", "instances"}


def read_records(path: Path, name: str) -> Iterator[Record]:
    """The rows of a .json, .jsonl, .csv, .tsv (each also .gz or .zst), .parquet or .arrow file.

    `name` is its name in messages.

    A JSON file is a list, one object per line, or an object of splits: {"train": [...], "test": [...]}.

    Bytes that are not UTF-8 become lone surrogates, so that an error can name their row and column.

    Raises:
        DataError: the file is of another kind, empty or broken, or ends inside a list or a quoted cell.
    """
    kind = Path(re.sub(r"\.(gz|zst)$", "", path.name.lower())).suffix
    if kind in {".json", ".jsonl", ".ndjson"}:
        return _json(read_text(path, name), name)
    if kind in {".csv", ".tsv"}:
        return _csv_rows(read_text(path, name), name, "\t" if kind == ".tsv" else None)
    batches = {".parquet": _parquet_batches, ".arrow": _arrow_batches, ".feather": _arrow_batches}.get(kind)
    if batches and path.suffix.lower() == kind:
        return _table_rows(batches(path), name, "Arrow" if batches is _arrow_batches else "parquet")
    raise DataError(
        f"{name}: not .json, .jsonl, .csv, .tsv (or one of these with .gz or .zst), .parquet or .arrow; "
        "remove it from the source"
    )


_SPACE = re.compile(r"[ \t\r\n]*")


def _json(text: str, name: str) -> Iterator[Record]:
    start = text.lstrip(" \t\r\n")
    if start.startswith("["):
        return _json_list(text, name)
    if start.startswith("{"):
        try:
            whole, end = JSON.raw_decode(start)
        except (ValueError, RecursionError):
            return _json_lines(text)  # which names the line
        spans_lines = "\n" in start[:end]
        if start[end:].strip(" \t\r\n"):
            if spans_lines and start[end:].lstrip().startswith("{"):
                raise DataError(
                    f"{name}: objects that span several lines; write a list, or one object per line (jq -c .)"
                )
        elif all(
            isinstance(rows, list) and (split_of_name(key) or key in LISTS_OF_ROWS) for key, rows in whole.items()
        ):
            return ((f"{key}:{number}", row) for key, rows in whole.items() for number, row in enumerate(rows, 1))
        elif fault := _whole_fault(whole, spans_lines=spans_lines):
            raise DataError(f"{name}: {fault}")
    return _json_lines(text)


def _whole_fault(whole: dict[str, Any], *, spans_lines: bool) -> str | None:
    """Why the only object of a file is no row, if it looks like something else."""
    keys = ascii(", ".join(whole))[1:-1][:EXCERPT]
    values = list(whole.values())
    for key in LISTS_OF_ROWS & whole.keys():
        if isinstance(whole[key], list) and any(isinstance(row, dict) for row in whole[key]):
            return f"rows in {key!r}, beside other keys ({keys}); keep only {{{key!r}: [...]}}, or the list"
    texts = all(isinstance(value, list) and all(isinstance(text, str) for text in value) for value in values)
    numbered = all(isinstance(value, dict) and all(key.isdigit() for key in value) for value in values)
    if len(values) > 1 and (texts or numbered) and len({len(value) for value in values}) == 1 and values[0]:
        return f"columns ({keys}) where rows are needed; in pandas, to_json(path, orient='records', lines=True)"
    if values and all(key.isdigit() and isinstance(value, dict) for key, value in whole.items()):
        return "an object of rows by number; write a list, or one row per line"
    if spans_lines:
        return f"one object with the keys {keys}; write a list, one object per line, or splits"
    return None


def _json_lines(text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines(), since a row may contain U+2028
        if not line.strip(" \t\r"):
            continue
        try:
            yield number, JSON.decode(line)
        except json.JSONDecodeError as error:
            yield number, Fault(str(error.pos + 1), f"not JSON ({error.msg}); fix or remove the line")
        except (ValueError, RecursionError) as error:  # thousands of digits or brackets
            yield number, Fault(None, f"not usable JSON ({str(error).split(';')[0]}); fix or remove the line")


def _json_list(text: str, name: str) -> Iterator[Record]:
    """Read element by element, so that an error can name the row."""

    def skip(position: int) -> int:
        return _SPACE.match(text, position).end()  # type: ignore[union-attr]  # also matches the empty string

    number, position = 1, skip(skip(0) + 1)
    try:
        # Stop at the end of an empty list; after a comma, an end is an error.
        while not text.startswith("]", position) or number > 1:
            record, position = JSON.raw_decode(text, position)
            yield number, record
            position = skip(position)
            if text.startswith("]", position):
                break
            if not text.startswith(",", position):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, position)
            number, position = number + 1, skip(position + 1)
        if text[position + 1 :].strip(" \t\r\n"):
            raise json.JSONDecodeError("Extra data after the list", text, position + 1)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise DataError(f"{name}:{number}: not JSON ({error.msg} at {where}); fix the file or fetch it again") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}:{number}: not usable JSON ({str(error).split(';')[0]}); fix the file") from None


def _csv_rows(text: str, name: str, divided_by: str | None) -> Iterator[Record]:
    """The rows below a header. `divided_by` is found from the header if it is None."""
    csv.field_size_limit(2**31 - 1)  # long responses are valid
    text = text.lstrip("\r\n")
    between = divided_by or delimiter(re.split("[\r\n]", text, maxsplit=1)[0], name)
    lines = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=between)
    number = 0
    try:
        header = next(lines, [])
        for column, times in Counter(header).items():
            if times > 1:
                raise DataError(f"{name}:header:{column[:EXCERPT]}: the column occurs {times} times; keep one")
        for number, cells in enumerate(lines, 1):
            if len(cells) == len(header):
                yield number, dict(zip(header, cells, strict=True))
            elif cells:
                marks = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}[between]
                advice = f"quote cells that contain {marks} or line breaks"
                if len(cells) > len(header):
                    advice += "; the first line must be the header"
                yield number, Fault(None, f"{len(cells)} cells under a header of {len(header)}; {advice}")
    except csv.Error as error:
        raise DataError(f"{name}:{number + 1}: not CSV ({error}); fix the file or fetch it again") from None


def _table_rows(batches: Iterator[pa.RecordBatch], name: str, kind: str) -> Iterator[Record]:
    number = 0
    try:
        for batch in batches:
            for number, record in enumerate(batch.to_pylist(), number + 1):  # noqa: B020 - continues the count
                yield number, {key: _plain(value) for key, value in record.items()}
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:EXCERPT]
        raise DataError(f"{name}:{number + 1}: not readable {kind} ({reason}); fetch it again") from None


def _parquet_batches(path: Path) -> Iterator[pa.RecordBatch]:
    yield from pq.ParquetFile(path).iter_batches()


def _arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Of a file that can be read from any place, or of a stream, which is what the library datasets writes."""
    with path.open("rb") as file:
        is_file = file.read(len(ARROW_FILE)) == ARROW_FILE
    with pa.memory_map(str(path)) as source:
        if is_file:
            reader = pa.ipc.open_file(source)
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            yield from pa.ipc.open_stream(source)


def _plain(value: Any) -> Any:
    """`value` as JSON has it, and without the keys of inner objects that are null: a table gives each object all keys."""
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items() if item is not None}
        case list():
            return [_plain(item) for item in value]
        case Decimal():
            return float(value)
        case bytes():  # some writers do not say which of them are texts
            return value.decode("utf-8", errors="surrogateescape")
        case date() | time() | timedelta():
            return str(value)
    return value
