"""The schema of preference pairs: every raw file becomes rows of it. A row that cannot be read says why.

`records.py` reads the files, `formats.py` parses their rows. The fault of a row is stored in the row: the gate lists it, and
`validate_pairs.levels` says what to do with it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from prefdag.lifecycle.errors import DataError
from prefdag.pairs.formats import ROW_FORMATS, RowFormat, attribution, detect_format
from prefdag.pairs.records import EXCERPT, Fault, file_name, read_records
from prefdag.pairs.values import needs_object

# Validated pairs. `prompt` ends with a user turn. `preference` is the probability that chosen is preferred to rejected.
# `source` is FILE:ROW, with rows counted from 1 (lines in JSON lines, rows below the header in CSV). An unpaired row has one
# response, chosen if it is desirable and rejected otherwise; the other is null.
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
# Set only if a row cannot be read: the column at fault, the reason with its remedy, and the start of the row.
FAULT = ("fault_column", "fault", "excerpt")
# The gate merges rows by annotator (null if none is named) and measures each origin (a row's `source`, or else its file).
ATTRIBUTION = ("annotator", "origin")


def read_pairs(
    folder: Path, row_format: str, named_by: str = "download_pairs.source", prefix: str = ""
) -> pd.DataFrame:
    """All rows of all files in `folder`, in the order of file names, then rows.

    The columns are those of `PAIRS`, `ATTRIBUTION` and `FAULT`. An unreadable row only has `source`, `origin` and the columns
    of `FAULT`.

    Args:
        row_format: a name in `ROW_FORMATS`, or auto: detected from the keys of the first row.
        named_by: the key of params.yaml that names the files, for error messages.
        prefix: put before the files' names.

    Raises:
        DataError: there is no file; a file has no rows, is of an unknown kind or is incomplete; or auto detects no format.
    """
    detected = ROW_FORMATS.get(row_format)  # auto: None until the first object
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise DataError(f"{folder}: no files; check {named_by} in params.yaml")
    rows: list[dict[str, Any]] = []
    for path in files:
        name = prefix + file_name(path, folder)
        before = len(rows)
        for number, record in read_records(path, name):
            if detected is None and isinstance(record, dict):
                detected = _detect_format(record, f"{name}:{number}")
            rows.append({"origin": name} | _row(f"{name}:{number}", record, detected))
        if len(rows) == before:
            raise DataError(f"{name}: has no rows; fetch it again or remove it from {named_by}")
    # Explicit, since a column may be all null.
    texts = dict.fromkeys(["id", "source", "chosen", "rejected", *ATTRIBUTION, *FAULT], "str")
    pairs = pd.DataFrame(rows, columns=[*PAIRS.names, *ATTRIBUTION, *FAULT])
    return pairs.astype({"prompt": "object", "preference": "float64"} | texts)


def write_pairs(path: Path, pairs: pd.DataFrame) -> None:
    """Write readable rows as parquet, with the columns of `PAIRS`."""
    table = pa.Table.from_pandas(pairs[PAIRS.names], schema=PAIRS, preserve_index=False)
    pq.write_table(table.replace_schema_metadata(None), path)


def _detect_format(record: dict[str, Any], source: str) -> RowFormat:
    try:
        return detect_format(record)
    except Fault as fault:
        raise DataError(f"{source}: {fault.reason}") from None


def _row(source: str, record: Any, row_format: RowFormat | None) -> dict[str, Any]:
    try:
        if isinstance(record, Fault):
            raise record
        row = needs_object(record, None)
        assert row_format is not None, "detected from the first object"
        pair = row_format.parse(row)
        optional = {name: value for name, value in attribution(row).items() if value is not None}
    except Fault as fault:
        content = "" if isinstance(record, Fault) else json.dumps(record, default=lambda value: type(value).__name__)
        return {"source": source, "fault_column": fault.column, "fault": fault.reason, "excerpt": content[:EXCERPT]}
    # The same judgement by two annotators is not a copy.
    identity = json.dumps([*pair, optional["annotator"]] if "annotator" in optional else pair).encode()
    return {"id": hashlib.sha256(identity).hexdigest()[:16], "source": source} | pair._asdict() | optional
