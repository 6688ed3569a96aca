"""What people said of comparisons, kept in files that are only ever added to. Imports no torch.

`labels/round-1` has any number of files: what the labelling page wrote (`NAME.jsonl`), tables (.csv), and exports of Label
Studio and Argilla (.json; `exports`). The last label of a person on a comparison counts.
"""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from prefdag.labelling import exports
from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import fsync

Outcome = Literal["first", "second", "tie", "skip", "undone"]  # skip: cannot tell; undone: as if there were no label
OUTCOMES: tuple[str, ...] = get_args(Outcome)
IGNORED = (".md", "")  # suffixes of files that have no labels; "" is that of .gitkeep


@checked(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class Label:
    """What a person said of a comparison once."""

    id: str  # of the comparison
    annotator: str
    outcome: Outcome
    note: str = ""
    time: str = ""  # ISO 8601, UTC; empty if unknown
    left: Literal["", "first", "second"] = ""  # which answer was on the left


@dataclass(frozen=True)
class Read:
    """A label, and where it is."""

    label: Label
    file: str
    row: int


_LABEL = TypeAdapter(Label)


def read_labels(folder: Path) -> list[Read]:
    """All labels in a folder, by file name, in the order of their rows. Raises `DataError` at what is no label."""
    found: list[Read] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir() or path.suffix in IGNORED or path.name.startswith("."):
            continue
        rows = READERS.get(path.suffix)
        if rows is None:
            raise DataError(
                f"{path}: labels are .jsonl, .csv or .json files; export it as one of these, or move it away"
            )
        try:
            found += [Read(_label(values, f"{path}:{row}"), str(path), row) for row, values in rows(path)]
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    return found


def _label(values: Mapping[str, Any], where: str) -> Label:
    try:
        # JSON mode is strict about types, but accepts a mapping for a dataclass.
        label = _LABEL.validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if key == "outcome":
            raise DataError(f"{where}: outcome {first['input']!r}; it is one of {', '.join(OUTCOMES[:-1])}") from None
        raise DataError(f"{where}: {key}: {first['msg'][0].lower()}{first['msg'][1:]}") from None
    if not label.id or not label.annotator:
        raise DataError(f"{where}: {'annotator' if label.id else 'id'}: empty; fill it in, or remove the row")
    return label if not label.time else _at(label, where)


def _at(label: Label, where: str) -> Label:
    try:
        time = datetime.fromisoformat(label.time)
    except ValueError:
        raise DataError(f"{where}: time {label.time!r}; write it as 2026-01-31T12:00:00Z, or leave it empty") from None
    own = asdict(label) | {"time": (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC).isoformat()}
    return Label(**own)


def latest(read: Iterable[Read]) -> dict[tuple[str, str], Label]:
    """The label that counts, by annotator and id of the comparison: the last one. In the order in which they were given.

    In one file, that is the lowest row; of several files, the one with the latest time.

    Raises:
        DataError: two files differ, and not all times are known.
    """
    own: dict[tuple[str, str], dict[str, Read]] = {}
    for each in read:
        files = own.setdefault((each.label.annotator, each.label.id), {})
        files[each.file] = each
    last: list[tuple[str, tuple[str, str], Label]] = []
    for key, files in own.items():
        several = list(files.values())
        if len({each.label.outcome for each in several}) > 1 and not all(each.label.time for each in several):
            one, other = several[:2]
            raise DataError(
                f"{one.file}:{one.row}: {one.label.annotator} labelled {one.label.id} otherwise in {other.file}:{other.row}, "
                "and there is no time to tell which is later; remove one of them"
            )
        chosen = max(several, key=lambda each: each.label.time).label
        last.append((chosen.time, key, chosen))
    last.sort(key=lambda each: each[0])
    return {key: label for _, key, label in last if label.outcome != "undone"}


def append(path: Path, label: Label) -> None:
    """Add a label to a file, so that it is on the disk when this returns. A label that cannot be written leaves no trace.

    Only one process may do so at a time.
    """
    line = json.dumps(asdict(label), ensure_ascii=False, sort_keys=True).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":  # somebody edited it
            line = b"\n" + line
        try:
            if os.write(descriptor, line) < len(line):
                raise OSError(28, "No space left on device")
            os.fsync(descriptor)
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
    if new:
        fsync(path.parent)


# Readers of files: number and values of each row


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    for row, line in enumerate(path.read_text("utf-8").split("\n"), 1):
        if line.strip():
            try:
                yield row, _mapping(json.loads(line))
            except (ValueError, RecursionError):
                raise DataError(f"{path}:{row}: not a label in JSON; mend the line, or remove it") from None


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(value)
    return value


def _cells(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of `to_label.csv`, filled in. Those without an outcome are no labels yet. Without a column annotator, the file's
    name is that of the person."""
    text = path.read_text("utf-8-sig")
    head = text.partition("\n")[0]
    table = csv.DictReader(text.splitlines(keepends=True), delimiter=";" if head.count(";") > head.count(",") else ",")
    columns = table.fieldnames or []
    if missing := [name for name in ("id", "outcome") if name not in columns]:
        raise DataError(f"{path}: no column {missing[0]}; fill in the column outcome of to_label.csv, and keep its id")
    for row in table:
        if None in row or None in row.values():
            raise DataError(f"{path}:{table.line_num}: the row has not as many cells as the header; mend it")
        values = {name: row[name].strip() for name in ("id", "annotator", "outcome", "note", "time") if name in columns}
        if values["outcome"]:
            yield table.line_num, {"annotator": path.stem, **values, "outcome": values["outcome"].lower()}


def _exported(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        tree = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        raise DataError(f"{path}: not JSON; export it again") from None
    yield from exports.labels(tree, path)


READERS = {".jsonl": _lines, ".csv": _cells, ".json": _exported}
