"""The schema of preference pairs: every raw file becomes rows of it. A row that cannot be read says why.

`formats` reads the files and parses their rows. The fault of a row is stored in the row: the gate lists it, and
`validate_pairs.levels` says what to do with it.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from prefdag.formats.context import attribution, published_split
from prefdag.formats.faults import EXCERPT, Fault
from prefdag.formats.fields import Row, closest_path, ignored
from prefdag.formats.files import data_files, split_of_name
from prefdag.formats.judgements import unreadable_score
from prefdag.formats.records import Record, read_records
from prefdag.formats.registry import ROW_FORMATS, detect_format, parse_row
from prefdag.lifecycle.errors import DataError
from prefdag.lifecycle.progress import tracked
from prefdag.recorded import recorded

if TYPE_CHECKING:
    from prefdag.formats.dialogues import Message
    from prefdag.formats.pair import RecordPair

# Validated pairs. `prompt` ends with a user turn, or with the result of a tool. `preference` is the probability that chosen is
# preferred to rejected. `source` is FILE:ROW, with rows counted from 1 (lines in JSON lines, rows below the header in CSV); in
# an object of splits it is FILE:SPLIT:ROW. An unpaired row has one response, chosen if it is desirable and rejected otherwise;
# the other is null. `extra` is null or a JSON object with what else a chat template may read of a turn: see
# `formats/dialogues.py`. `tools` is a JSON list of their schemas. `split` is the published one: train, val, test or null.
MESSAGE = pa.struct({"role": pa.string(), "content": pa.string(), "extra": pa.string()})
PAIRS = pa.schema(
    {
        "id": pa.string(),
        "source": pa.string(),
        "prompt": pa.list_(MESSAGE),
        "chosen": pa.string(),
        "rejected": pa.string(),
        "preference": pa.float64(),
        "chosen_extra": pa.string(),
        "rejected_extra": pa.string(),
        "tools": pa.string(),
        "split": pa.string(),
    }
)
# Set only if a row cannot be read: the column at fault, the reason with its remedy, and the start of the row.
FAULT = ("fault_column", "fault", "excerpt")
# The gate merges rows by annotator (null if none is named) and measures each origin (a row's `source`, or else its file).
ATTRIBUTION = ("annotator", "origin")
# The gate compares the scores with the preference, unless they are the preference.
SCORES = ("score_chosen", "score_rejected")
REPEATED = 12  # characters of a prompt that responses do not repeat by chance
FIRST = 20  # rows of a file by which its format is detected


def read_pairs(
    folder: Path,
    row_format: str,
    named_by: str = "download_pairs.source",
    prefix: str = "",
    columns: Mapping[str, str | None] | None = None,
    score_scale: float | None = None,
) -> pd.DataFrame:
    """All rows of all files in `folder`, in the order of file names, then rows.

    The columns are those of `PAIRS`, `ATTRIBUTION`, `SCORES` and `FAULT`, the `format`, and `ignored`: the names of what was
    not read, a tuple. An unreadable row only has `source`, `origin`, `split`, `format` and the columns of `FAULT`.

    Args:
        row_format: a name in `ROW_FORMATS`, or auto: detected in each file from its first rows.
        named_by: the key of params.yaml that names the files, for error messages.
        prefix: put before the files' names.
        columns: the paths of fields that have other names in the files, see `formats.fields.Row`.
        score_scale: the preference is sigmoid((score_chosen - score_rejected) / score_scale) in rows with scores.

    Raises:
        DataError: there is no file; a file has no rows, is of an unknown kind or is incomplete; a path in `columns` is in none
            of a file's first rows; or auto detects no format.
    """
    columns = columns or {}
    rows: list[dict[str, Any]] = []
    for path, plain_name in data_files(recorded(folder), named_by):
        name = prefix + plain_name
        records = read_records(path, name)
        first = list(islice(records, FIRST))
        if not first:
            raise DataError(f"{name}: has no rows; fetch it again or remove it from {named_by}")
        _check_columns(first, columns, name)
        known = _format(first, columns, name) if row_format == "auto" else row_format
        pooled = "split" in columns and columns["split"] is None
        grouped = _grouped(chain(first, records), ROW_FORMATS[known].several, columns)
        for place, record in tracked(grouped, "row", name):
            part = split_of_name(place.rpartition(":")[0]) if isinstance(place, str) else None
            split = None if pooled else part or split_of_name(plain_name)
            given = {"format": known, "origin": name, "split": split}
            rows.append(given | _row(f"{name}:{place}", record, known, score_scale))
    # Explicit, since a column may be all null.
    texts = ["id", "source", "chosen", "rejected", "chosen_extra", "rejected_extra", "tools", "split"]
    pairs = pd.DataFrame(rows, columns=[*PAIRS.names, *ATTRIBUTION, *SCORES, *FAULT, "format", "ignored"])
    types = dict.fromkeys([*texts, *ATTRIBUTION, *FAULT, "format"], "str") | dict.fromkeys(
        ["preference", *SCORES], "float64"
    )
    return pairs.astype({"prompt": "object", "ignored": "object"} | types)


def write_pairs(path: Path, pairs: pd.DataFrame) -> None:
    """Write readable rows as parquet, with the columns of `PAIRS`."""
    table = pa.Table.from_pandas(pairs[PAIRS.names], schema=PAIRS, preserve_index=False)
    pq.write_table(table.replace_schema_metadata(None), path)


def ignored_columns(pairs: pd.DataFrame) -> dict[str, int]:
    """The number of readable rows per name of a column that was not read, the most frequent first."""
    return dict(Counter(chain.from_iterable(pairs["ignored"].dropna())).most_common())


def repeat_prompt(pairs: pd.DataFrame) -> int:
    """The number of readable rows in which both responses begin with the last turn of the prompt, as if it were repeated."""
    rows = pairs.loc[pairs["fault"].isna(), ["prompt", "chosen", "rejected"]].dropna().itertuples(index=False)
    questions = ((prompt[-1]["content"].strip(), sides) for prompt, *sides in rows)
    return sum(
        len(text) >= REPEATED and all(side.strip().startswith(text) for side in sides) for text, sides in questions
    )


def _check_columns(first: Iterable[Record], columns: Mapping[str, str | None], name: str) -> None:
    """Check that every path in `columns` is in one of the first rows of a file."""
    objects = [Row(record) for _, record in first if isinstance(record, dict)]
    for own, path in columns.items():
        wanted = own if path is None else path
        if objects and path is not None and not any(row.at(wanted) is not None for row in objects):
            guess = closest_path(objects[0].value, wanted)
            remedy = f"did you mean {guess!r}?" if guess else f"the keys are {', '.join(objects[0].value)}"
            raise DataError(f"{name}: validate_pairs.columns.{own}: {wanted!r} is in none of the first rows; {remedy}")


def _format(first: Iterable[Record], columns: Mapping[str, str | None], name: str) -> str:
    """The format of the first objects of a file."""
    objects = [(place, Row(record, columns)) for place, record in first if isinstance(record, dict)]
    if not objects:
        return "plain"  # no row is readable in any format
    try:
        return detect_format([row for _, row in objects])
    except Fault as fault:
        raise DataError(f"{name}:{objects[0][0]}: {fault.reason}") from None


def _grouped(
    records: Iterable[Record], several: bool, columns: Mapping[str, str | None]
) -> Iterator[tuple[int | str, Row | Fault]]:
    """The rows of a file. If `several` rows are one record, consecutive rows with the same prompt become the first of them."""
    rows = ((place, _opened(record, columns)) for place, record in records)
    if not several:
        yield from rows
        return
    for _, group in groupby(rows, key=_prompt):
        (place, first), *others = group
        if isinstance(first, Row):
            first = Row(first.value, columns, [row for _, row in others if isinstance(row, Row)])
        yield place, first


def _opened(record: Any, columns: Mapping[str, str | None]) -> Row | Fault:
    try:
        return record if isinstance(record, Fault) else Row(record, columns)
    except Fault as fault:
        return fault


def _prompt(item: tuple[int | str, Row | Fault]) -> str:
    """What consecutive rows of one record have in common: their prompt, and the part of the file."""
    place, row = item
    part = place.rpartition(":")[0] if isinstance(place, str) else ""
    alone = isinstance(row, Fault) or "prompt" not in row
    return f"{part}:{place}" if alone else f"{part}:{json.dumps(row['prompt'].value, default=repr)}"  # type: ignore[index]


def _row(source: str, row: Row | Fault, row_format: str, score_scale: float | None) -> dict[str, Any]:
    try:
        if isinstance(row, Fault):
            raise row
        pair = parse_row(row, row_format)
        optional = {name: value for name, value in attribution(row).items() if value is not None}
        if (split := published_split(row)) is not None:
            optional["split"] = split
        names = tuple(ignored(row, f"format {row_format}"))
        if score_scale is not None and pair.scores is None and (score := unreadable_score(row)):
            raise Fault(
                score.path, "not a finite number, but score_scale makes the scores the preference; write a number"
            )
        preference = _preference(pair, score_scale)
    except Fault as fault:
        content = "" if isinstance(row, Fault) else json.dumps(row.value, default=lambda value: type(value).__name__)
        return {"source": source, "fault_column": fault.column, "fault": fault.reason, "excerpt": content[:EXCERPT]}
    sides: dict[str, Any] = _side("chosen", pair.chosen) | _side("rejected", pair.rejected)
    extras = {key: sides[key] for key in ("chosen_extra", "rejected_extra") if sides[key]}
    extras |= {"tools": pair.tools} if pair.tools else {}
    identity: list[Any] = [pair.prompt, sides["chosen"], sides["rejected"], preference]
    # The same judgement by two annotators is not a copy.
    identity += [optional["annotator"]] if "annotator" in optional else []
    identity += [extras] if extras else []
    # With scores as the preference there is nothing to compare them with.
    scores = dict(zip(SCORES, pair.scores, strict=True)) if pair.scores and score_scale is None else {}
    return {
        "id": hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16],
        "source": source,
        "prompt": pair.prompt,
        "preference": preference,
        "tools": pair.tools,
        "ignored": names,
        **sides,
        **scores,
        **optional,
    }


def _side(name: str, message: "Message | None") -> dict[str, str | None]:
    text, extra = (message["content"], message.get("extra")) if message else (None, None)
    return {name: text, f"{name}_extra": extra}


def _preference(pair: "RecordPair", score_scale: float | None) -> float:
    if score_scale is None or pair.scores is None:
        return 1.0 if pair.preference is None else pair.preference
    chosen, rejected = pair.scores
    if pair.preference is not None and chosen != rejected:  # a tie is 0.5 either way
        raise Fault("preference", "the row gives a preference and scores; set validate_pairs.score_scale to null")
    return 1 / (1 + math.exp(min(700.0, (rejected - chosen) / score_scale)))
