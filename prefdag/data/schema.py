"""Readers of preference data: every raw file becomes rows of one schema, and a row that cannot be read says why.

A file format (JSON, JSON lines, CSV, parquet) yields records; a row format (sharegpt, hh-rlhf, plain, unpaired) turns a
record into a pair. A row's fault is kept in the row: `checks.py` lists it, `validate_pairs.on_invalid` judges it. A file's
fault, after which nobody can say how many rows are lost, is a `DataError`.
"""

import csv
import gzip
import hashlib
import io
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from prefdag.errors import DataError

Message = dict[str, str]  # {"role": system|user|assistant, "content": text}

# What validated pairs hold. `prompt` ends with a user turn; `preference` is the probability that chosen is preferred to
# rejected; `source` is FILE:ROW, rows counted from 1 (lines in JSON lines, rows below the header in CSV). Of unpaired data a
# row has one response, chosen if it is desirable, and null in the place of the other.
PAIRS = pa.schema(
    {
        "id": pa.string(),
        "source": pa.string(),
        "prompt": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "chosen": pa.string(),
        "rejected": pa.string(),
        "preference": pa.float64(),
    }
)
# Beside them, null unless a row cannot be read: where the fault is, what it is with its remedy, and what stood there.
FAULT = ("fault_column", "fault", "excerpt")
EXCERPT = 120  # characters

REPEATED = object()  # the value of a key that stands twice in a JSON object
CHAT_ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
SHAREGPT_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


class Pair(NamedTuple):
    """What a row format reads from one record."""

    prompt: list[Message]
    chosen: str | None
    rejected: str | None
    preference: float = 1.0


class Fault(Exception):  # noqa: N818 - the row's, not ours
    """Why a row cannot be read: the column (in a line that is not JSON, the character); the reason with its remedy."""

    def __init__(self, column: str | None, reason: str) -> None:
        super().__init__(reason)
        self.column = column
        self.reason = reason


Record = tuple[int, Any]  # row number from 1, and what stands there: any JSON value, or a Fault


def read_pairs(folder: Path, row_format: str) -> pd.DataFrame:
    """All rows of all files below `folder`, in the order of file names, then rows.

    Columns: those of `PAIRS` and of `FAULT`. In an unreadable row only `source` and the columns of `FAULT` are set.

    Raises:
        DataError: there is no file, or a file that holds no row, is of no known kind or breaks off.
    """
    read_row = ROW_FORMATS[row_format]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise DataError(f"{folder}: no files; look at download_pairs.source in params.yaml")
    rows: list[dict[str, Any]] = []
    for path in files:
        name = path.relative_to(folder).as_posix()
        before = len(rows)
        rows += [_row(f"{name}:{number}", record, read_row) for number, record in read_records(path, name)]
        if len(rows) == before:
            raise DataError(f"{name}: holds no rows; fetch it again or remove it from download_pairs.source")
    texts = dict.fromkeys(["id", "source", "chosen", "rejected", *FAULT], "str")  # also where all of a column is null
    pairs = pd.DataFrame(rows, columns=[*PAIRS.names, *FAULT])
    return pairs.astype({"prompt": "object", "preference": "float64"} | texts)


def write_pairs(path: Path, pairs: pd.DataFrame) -> None:
    """Readable rows as parquet, with the columns of `PAIRS`."""
    table = pa.Table.from_pandas(pairs[PAIRS.names], schema=PAIRS, preserve_index=False)
    pq.write_table(table.replace_schema_metadata(None), path)


def _row(source: str, record: Any, read_row: Callable[[dict[str, Any]], Pair]) -> dict[str, Any]:
    try:
        if isinstance(record, Fault):
            raise record
        pair = read_row(_object(record, None))
    except Fault as fault:
        found = "" if isinstance(record, Fault) else json.dumps(record, default=lambda value: type(value).__name__)
        return {"source": source, "fault_column": fault.column, "fault": fault.reason, "excerpt": found[:EXCERPT]}
    content = json.dumps(pair).encode()
    return {"id": hashlib.sha256(content).hexdigest()[:16], "source": source} | pair._asdict()


# Row formats: a record as read from a file -> Pair, or Fault.


def sharegpt(row: dict[str, Any]) -> Pair:
    """`conversations`, `chosen`, `rejected`, whose turns are {"from": human|gpt|system, "value": text}."""
    turns, *responses = _fields(row, "sharegpt", ("conversations", "chosen", "rejected"))
    prompt = _messages(turns, "conversations", ("from", "value"), SHAREGPT_ROLES)
    chosen, rejected = (
        _message(response, column, ("from", "value"), {"gpt": "assistant"})["content"]
        for response, column in zip(responses, ("chosen", "rejected"), strict=True)
    )
    return Pair(prompt, chosen, rejected)


def hh_rlhf(row: dict[str, Any]) -> Pair:
    r"""`chosen`, `rejected`: transcripts "\n\nHuman: ...\n\nAssistant: ..." of one prompt and its two last replies."""
    prompts, responses = [], []
    for column, transcript in zip(("chosen", "rejected"), _fields(row, "hh-rlhf", ("chosen", "rejected")), strict=True):
        prompt, mark, response = _text(transcript, column).rpartition("\n\nAssistant:")
        if not mark:
            raise Fault(column, r"no '\n\nAssistant:' in it; is validate_pairs.format right?")
        if "\n\nHuman:" in response:
            raise Fault(column, "ends with a human turn; cut it behind the last reply")
        prompts.append(prompt)
        responses.append(response.removeprefix(" "))
    if prompts[0] != prompts[1]:
        raise Fault("rejected", r"another prompt than that of chosen; both must agree up to the last '\n\nAssistant:'")
    before, *turns = re.split(r"\n\n(Human|Assistant):", prompts[0])
    if before:
        raise Fault("chosen", r"text before the first turn; a transcript starts with '\n\nHuman:'")
    roles = {"Human": "user", "Assistant": "assistant"}
    messages = [
        {"role": roles[speaker], "content": text.removeprefix(" ")}
        for speaker, text in zip(turns[::2], turns[1::2], strict=True)
    ]
    return Pair(_prompt(messages, "chosen"), responses[0], responses[1])


def plain(row: dict[str, Any]) -> Pair:
    """`prompt` (text, or a list of {"role", "content"}), `chosen`, `rejected`; `preference`, 1 where absent."""
    turns, chosen, rejected = _fields(row, "plain", ("prompt", "chosen", "rejected"))
    prompt = _text_or_messages(turns, "prompt")
    preference = _number(row.get("preference", 1.0), "preference")
    return Pair(prompt, _text(chosen, "chosen"), _text(rejected, "rejected"), preference)


def unpaired(row: dict[str, Any]) -> Pair:
    """`prompt` (as in `plain`), `completion`, `label`: true (or 1) where it is desirable, false (or 0) where it is not."""
    turns, completion, label = _fields(row, "unpaired", ("prompt", "completion", "label"))
    prompt, response = _text_or_messages(turns, "prompt"), _text(completion, "completion")
    return Pair(prompt, response, None) if _label(label, "label") else Pair(prompt, None, response)


ROW_FORMATS: dict[str, Callable[[dict[str, Any]], Pair]] = {
    "sharegpt": sharegpt,
    "hh-rlhf": hh_rlhf,
    "plain": plain,
    "unpaired": unpaired,
}


def _fields(row: dict[str, Any], row_format: str, keys: tuple[str, ...]) -> list[Any]:
    """The values of `keys`. A fault names what was looked for and what is there: the format may be the wrong one."""
    for key in keys:
        if key not in row:
            found = ascii(", ".join(row) or "nothing")[1:-1]
            wanted = f"format {row_format} looks for {', '.join(keys)} and found {found}"
            raise Fault(key, f"missing; {wanted[: 4 * EXCERPT]}; mend the row or set validate_pairs.format")
    return [row[key] for key in keys]


def _text_or_messages(value: Any, column: str) -> list[Message]:
    """A prompt as a list of {"role", "content"}, or as the text of one user turn."""
    if isinstance(value, list):
        return _messages(value, column, ("role", "content"), CHAT_ROLES)
    return [{"role": "user", "content": _text(value, column)}]


def _messages(value: Any, column: str, keys: tuple[str, str], roles: dict[str, str]) -> list[Message]:
    if not isinstance(value, list):
        raise Fault(column, f"{_kind(value)} where a list of turns is needed")
    return _prompt([_message(turn, f"{column}[{i}]", keys, roles) for i, turn in enumerate(value)], column)


def _message(value: Any, column: str, keys: tuple[str, str], roles: dict[str, str]) -> Message:
    turn = _object(value, column)
    for key in keys:
        if key not in turn:
            raise Fault(f"{column}.{key}", f"missing; a turn needs {keys[0]} and {keys[1]}")
    role, content = (_text(turn[key], f"{column}.{key}") for key in keys)
    if role not in roles:
        raise Fault(f"{column}.{keys[0]}", f"unknown role {role[:EXCERPT]!r}; use {', '.join(roles)}")
    return {"role": roles[role], "content": content}


def _prompt(messages: list[Message], column: str) -> list[Message]:
    if not messages or messages[-1]["role"] != "user":
        found = f"an {messages[-1]['role']} turn".replace("an s", "a s") if messages else "no turn"
        raise Fault(column, f"the prompt ends with {found}; the last turn before the response must be the user's")
    return messages


def _object(value: Any, column: str | None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Fault(column, f"{_kind(value)} where an object is needed")
    return value


def _text(value: Any, column: str) -> str:
    """`value` if it is text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise Fault(column, f"{_kind(value)} where text is needed")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # Bytes that are not UTF-8 arrive here as surrogates, too: see `read_text`.
        where = f"character {error.start + 1}"
        raise Fault(column, f"bytes that are not UTF-8, or a lone surrogate, at {where}; save it as UTF-8") from None
    return value


def _number(value: Any, column: str) -> float:
    """`value` as a finite number; text, as CSV has it, will do. Its range is for the checks to judge."""
    if value is REPEATED or isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Fault(column, f"{_kind(value)} where a number is needed; without the column every preference is 1")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Fault(column, "not a finite number; write a probability, or leave the column out")
    return number


def _label(value: Any, column: str) -> bool:
    """`value` as true or false; 1 and 0 will do, and either as text, as CSV has it."""
    if isinstance(value, str):
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.lower(), value)
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise Fault(column, f"{_kind(value)} where true or false is needed; write true for a desirable completion")
    return bool(value)


def _kind(value: Any) -> str:
    """A value's type in the user's words."""
    if value is REPEATED:
        return "the same key twice"
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


# File formats: a file -> numbered records.


def read_records(path: Path, name: str) -> Iterator[Record]:
    """The rows of a .json, .jsonl, .csv (each also .gz) or .parquet file; `name` is how errors call it.

    Bytes that are not UTF-8 become lone surrogates, so that the row and column that hold them can be named.

    Raises:
        DataError: the file is of another kind, empty, broken, or breaks off in the middle of a list or a quoted cell.
    """
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    if kind in {".json", ".jsonl"}:
        text = read_text(path, name)
        return _json_list(text, name) if text.lstrip(" \t\r\n").startswith("[") else _json_lines(text)
    if kind == ".csv":
        return _csv_rows(read_text(path, name), name)
    if kind == ".parquet" and path.suffix.lower() == kind:
        return _parquet_rows(path, name)
    raise DataError(f"{name}: not .json, .jsonl, .csv (or one of them .gz) or .parquet; leave it out of the source")


def read_text(path: Path, name: str) -> str:
    """A file's text, unpacked, without its byte order mark; bytes that are not UTF-8 as lone surrogates."""
    content = path.read_bytes()
    if path.suffix.lower() == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{name}: not a whole gzip file ({error}); fetch it again") from None
    return content.decode("utf-8", errors="surrogateescape").removeprefix("\ufeff")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; which of the values of a repeated key is meant nobody knows."""
    row = dict(pairs)
    if len(row) < len(pairs):
        row |= {key: REPEATED for key, times in Counter(key for key, _ in pairs).items() if times > 1}
    return row


_JSON = json.JSONDecoder(object_pairs_hook=_once)
_SPACE = re.compile(r"[ \t\r\n]*")


def _json_lines(text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines(): U+2028 may stand inside a row
        if not line.strip(" \t\r"):
            continue
        try:
            yield number, _JSON.decode(line)
        except json.JSONDecodeError as error:
            yield number, Fault(str(error.pos + 1), f"not JSON ({error.msg}); mend or remove the line")
        except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
            yield number, Fault(None, f"not usable JSON ({str(error).split(';')[0]}); mend or remove the line")


def _json_list(text: str, name: str) -> Iterator[Record]:
    """Element by element, so that a fault has a row."""

    def skip(position: int) -> int:
        return _SPACE.match(text, position).end()  # type: ignore[union-attr]  # matches the empty string, too

    number, position = 1, skip(skip(0) + 1)
    try:
        while (
            not text.startswith("]", position) or number > 1
        ):  # an empty list, or a comma before the end, which is a fault
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
        raise DataError(
            f"{name}:{number}: not JSON ({error.msg} at {where}); mend the file or fetch it again"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}:{number}: not usable JSON ({str(error).split(';')[0]}); mend the file") from None


def _csv_rows(text: str, name: str) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)  # a long response is no fault
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    number = 0
    try:
        header = next(lines, [])
        for column, times in Counter(header).items():
            if times > 1:
                raise DataError(f"{name}:header:{column[:EXCERPT]}: the column stands {times} times; keep one")
        for number, cells in enumerate(lines, 1):
            if len(cells) == len(header):
                yield number, dict(zip(header, cells, strict=True))
            elif cells:
                advice = "quote cells that hold commas or line breaks"
                yield number, Fault(None, f"{len(cells)} cells under a header of {len(header)}; {advice}")
    except csv.Error as error:
        raise DataError(f"{name}:{number + 1}: not CSV ({error}); mend the file or fetch it again") from None


def _parquet_rows(path: Path, name: str) -> Iterator[Record]:
    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches():
            for number, record in enumerate(batch.to_pylist(), number + 1):  # noqa: B020 - goes on counting
                yield number, record
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:EXCERPT]
        raise DataError(f"{name}:{number + 1}: not readable parquet ({reason}); fetch it again") from None
