"""The schema of preference data: every raw file becomes rows of it, and a row that cannot be read says why.

`records.py` reads files, `formats.py` what stands in their rows. A row's fault is kept in the row: `checks.py` lists it,
`validate_pairs.levels` says what becomes of it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from prefdag.pairs.formats import ROW_FORMATS, RowFormat, marks, needs_object, recognised
from prefdag.pairs.records import EXCERPT, Fault, file_name, read_records
from prefdag.runtime.errors import DataError

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
# And what the gate measures and merges by: who judged, null where nobody is named, and where the row comes from.
MARKS = ("annotator", "origin")


def read_pairs(
    folder: Path, row_format: str, named_by: str = "download_pairs.source", prefix: str = ""
) -> pd.DataFrame:
    """All rows of all files below `folder`, in the order of file names, then rows.

    Columns: those of `PAIRS`, of `MARKS` and of `FAULT`. In an unreadable row only `source`, `origin` and the columns of
    `FAULT` are set.

    Args:
        row_format: a name in `ROW_FORMATS`, or auto: the one whose keys the first row has.
        named_by: the key of params.yaml that names the files, for remedies.
        prefix: of the files' names.

    Raises:
        DataError: there is no file, or a file that holds no row, is of no known kind or breaks off; auto finds no format.
    """
    known = ROW_FORMATS.get(row_format)  # auto: None, up to the first object
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise DataError(f"{folder}: no files; look at {named_by} in params.yaml")
    rows: list[dict[str, Any]] = []
    for path in files:
        name = prefix + file_name(path, folder)
        before = len(rows)
        for number, record in read_records(path, name):
            if known is None and isinstance(record, dict):
                known = _recognised(record, f"{name}:{number}")
            rows.append({"origin": name} | _row(f"{name}:{number}", record, known))
        if len(rows) == before:
            raise DataError(f"{name}: holds no rows; fetch it again or remove it from {named_by}")
    texts = dict.fromkeys(
        ["id", "source", "chosen", "rejected", *MARKS, *FAULT], "str"
    )  # also where all of a column is null
    pairs = pd.DataFrame(rows, columns=[*PAIRS.names, *MARKS, *FAULT])
    return pairs.astype({"prompt": "object", "preference": "float64"} | texts)


def write_pairs(path: Path, pairs: pd.DataFrame) -> None:
    """Readable rows as parquet, with the columns of `PAIRS`."""
    table = pa.Table.from_pandas(pairs[PAIRS.names], schema=PAIRS, preserve_index=False)
    pq.write_table(table.replace_schema_metadata(None), path)


def _recognised(record: dict[str, Any], source: str) -> RowFormat:
    try:
        return recognised(record)
    except Fault as fault:
        raise DataError(f"{source}: {fault.reason}") from None


def _row(source: str, record: Any, known: RowFormat | None) -> dict[str, Any]:
    try:
        if isinstance(record, Fault):
            raise record
        row = needs_object(record, None)
        assert known is not None, "the first object made it known"
        pair = known.read(row)
        said = {name: mark for name, mark in marks(row).items() if mark is not None}
    except Fault as fault:
        found = "" if isinstance(record, Fault) else json.dumps(record, default=lambda value: type(value).__name__)
        return {"source": source, "fault_column": fault.column, "fault": fault.reason, "excerpt": found[:EXCERPT]}
    # What two annotators say alike are two judgements, no copies.
    content = json.dumps([*pair, said["annotator"]] if "annotator" in said else pair).encode()
    return {"id": hashlib.sha256(content).hexdigest()[:16], "source": source} | pair._asdict() | said
