"""File formats: read a raw file (JSON, JSON lines, CSV, parquet) as numbered records, each of them any JSON value.

A record that cannot be read is replaced by a `Fault`, and reading goes on. If the rest of a file cannot be read, so that it is
unknown how many rows are lost, a `DataError` is raised.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefdag.lifecycle.errors import DataError
from prefdag.sources.archives import unpacked

EXCERPT = 120  # characters
REPEATED = object()  # the value of a key that occurs more than once in a JSON object


class Fault(Exception):  # noqa: N818 - a fault of the row, not of the program
    """Why a row cannot be read: the column (or the character, if a line is not JSON), and the reason with its remedy."""

    def __init__(self, column: str | None, reason: str) -> None:
        super().__init__(reason)
        self.column = column
        self.reason = reason


Record = tuple[int, Any]  # row number from 1, and any JSON value or a Fault


def file_name(path: Path, folder: Path) -> str:
    """The name of a file in `folder` for errors and sources. Raises `DataError` if it cannot be printed on one line."""
    return printable(path.relative_to(folder).as_posix())


def printable(name: str) -> str:
    """`name`, the name of a file. Raises `DataError` if it has characters such as line breaks, or bytes that are not UTF-8."""
    if not name.isprintable():
        raise DataError(f"{name!r}: the name has characters that cannot be printed; rename the file")
    return name


def read_records(path: Path, name: str) -> Iterator[Record]:
    """The rows of a .json, .jsonl, .csv (each also .gz) or .parquet file; `name` is its name in error messages.

    Bytes that are not UTF-8 become lone surrogates, so that an error can name their row and column.

    Raises:
        DataError: the file is of another kind, empty or broken, or ends inside a list or a quoted cell.
    """
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    if kind in {".json", ".jsonl"}:
        text = read_text(path, name)
        return _json_list(text, name) if text.lstrip(" \t\r\n").startswith("[") else _json_lines(text)
    if kind == ".csv":
        return _csv_rows(read_text(path, name), name)
    if kind == ".parquet" and path.suffix.lower() == kind:
        return _parquet_rows(path, name)
    raise DataError(
        f"{name}: not .json, .jsonl, .csv (or one of these with .gz) or .parquet; remove it from the source"
    )


def read_text(path: Path, name: str) -> str:
    """A file's text, unpacked, without a byte order mark. Bytes that are not UTF-8 become lone surrogates."""
    return unpacked(path, name).decode("utf-8", errors="surrogateescape").removeprefix("\ufeff")


def _mark_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. A repeated key gets the value `REPEATED`, since it is unclear which of its values is meant."""
    row = dict(pairs)
    if len(row) < len(pairs):
        row |= {key: REPEATED for key, times in Counter(key for key, _ in pairs).items() if times > 1}
    return row


_JSON = json.JSONDecoder(object_pairs_hook=_mark_repeated)
_SPACE = re.compile(r"[ \t\r\n]*")


def _json_lines(text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines(), since a row may contain U+2028
        if not line.strip(" \t\r"):
            continue
        try:
            yield number, _JSON.decode(line)
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
            record, position = _JSON.raw_decode(text, position)
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


def _csv_rows(text: str, name: str) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)  # long responses are valid
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
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
                advice = "quote cells that contain commas or line breaks"
                yield number, Fault(None, f"{len(cells)} cells under a header of {len(header)}; {advice}")
    except csv.Error as error:
        raise DataError(f"{name}:{number + 1}: not CSV ({error}); fix the file or fetch it again") from None


def _parquet_rows(path: Path, name: str) -> Iterator[Record]:
    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches():
            for number, record in enumerate(batch.to_pylist(), number + 1):  # noqa: B020 - continues the count
                yield number, record
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:EXCERPT]
        raise DataError(f"{name}:{number + 1}: not readable parquet ({reason}); fetch it again") from None
