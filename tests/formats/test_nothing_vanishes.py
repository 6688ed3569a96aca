"""Rows with known content in every format and random other columns: what was written comes out, or is named."""

import ast
import csv
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from format_rows import BUILDERS, KNOWN, Built, columns
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefdag.formats.fields import Row, ignored, meaningful
from prefdag.formats.registry import ROW_FORMATS
from prefdag.formats.values import holds
from prefdag.lifecycle.errors import DataError
from prefdag.pairs.schema import read_pairs

KINDS = ["jsonl", "json", "csv", "parquet", "arrow"]
UNKNOWN = st.text("abc_", max_size=3).map("zz".__add__)


def write(folder: Path, rows: list[dict[str, Any]], kind: str) -> None:
    """Write rows to a file of this kind, or as JSON lines if a table cannot hold them."""
    if kind in ("parquet", "arrow"):
        names = dict.fromkeys(key for row in rows for key in row)
        try:
            table = pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])
            if kind == "parquet":
                pq.write_table(table, folder / "a.parquet")
            else:
                with pa.OSFile(str(folder / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                    writer.write_table(table)
        except (pa.ArrowException, OverflowError):
            kind = "jsonl"
    elif kind == "csv":
        with (folder / "a.csv").open("w", encoding="utf-8", newline="") as file:
            lines = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
            lines.writeheader()
            for row in rows:
                cells = {key: json.dumps(cell) if isinstance(cell, list | dict) else cell for key, cell in row.items()}
                lines.writerow(cells)
    elif kind == "json":
        (folder / "a.json").write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    if kind == "jsonl":
        (folder / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def check(built: Built, rows: list[dict[str, Any]], row_format: str, folder: Path, *, is_clean: bool) -> None:
    """What was written comes out in its place, or the row or the column is named; the latter only if `is_clean`."""
    try:
        pairs = read_pairs(folder, row_format)
    except DataError as error:
        assert "no known format" in str(error)  # noqa: PT017 - either outcome is right
        assert not is_clean
        return
    pair = pairs.astype("object").where(pairs.notna(), None).to_dict("records")[0]
    if pair["fault"] is not None:
        assert pair["fault_column"], pair["fault"]
        assert not is_clean, pair["fault"]
        return
    assert len(pairs) == 1
    decoded = [{key: _decoded(value) for key, value in row.items()} for row in rows]
    named = set[str]().union(*(under(row, name) for row in decoded for name in pair["ignored"]))
    out = marks({key: value for key, value in pair.items() if key not in ("source", "id")})
    assert marks(rows) <= out | named | marks(built.left_out)
    assert not any(meaningful(name.rpartition(".")[2].removesuffix("[]")) for name in pair["ignored"])
    if (
        marks([built.chosen, built.rejected]) & named
    ):  # another column, such as `chosen` beside `output`, took its place
        assert not is_clean
        return
    assert (pair["chosen"], pair["rejected"]) == (built.chosen, built.rejected)
    said = iter(pair["prompt"])
    for role, text in built.prompt:
        assert any(turn["role"] == role and text in turn["content"] for turn in said), (role, text)


def reads_what_was_written(row_format: str, data: st.DataObject, folders: pytest.TempPathFactory) -> None:
    """A file of a random kind, with random columns beside those of its format."""
    built = data.draw(BUILDERS[row_format])
    is_known = data.draw(st.booleans())
    beside = data.draw(columns(st.sampled_from(KNOWN) if is_known else UNKNOWN))
    rows = [{key: value for key, value in beside.items() if key not in row} | row for row in built.rows]
    folder = folders.mktemp("rows")
    write(folder, rows, data.draw(st.sampled_from(KINDS)))
    is_clean = not is_known and not any(meaningful(name) for name in _names(built.rows) - {"context", "history"})
    check(built, rows, row_format, folder, is_clean=is_clean)
    if not is_known:
        check(built, rows, "auto", folder, is_clean=is_clean)


SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


@pytest.mark.slow
@pytest.mark.parametrize("row_format", BUILDERS)
@settings(SETTINGS, max_examples=60)
@given(st.data())
def test_what_was_written_comes_out_or_is_named(
    tmp_path_factory: pytest.TempPathFactory, row_format: str, data: st.DataObject
) -> None:
    reads_what_was_written(row_format, data, tmp_path_factory)


def test_every_format_has_a_builder_of_rows() -> None:
    assert set(BUILDERS) == set(ROW_FORMATS)


def marks(value: Any) -> set[str]:
    """Every mark in a value. Lists that are stored as text are part of it."""
    return set(re.findall(r"mark\d+x", json.dumps(value)))


def under(record: Any, name: str) -> set[str]:
    """The marks below a name such as chosen[].weight."""
    values = [record]
    for part in name.replace("[]", ".[]").split("."):
        lists = [value for value in values if isinstance(value, list)]
        objects = [value for value in values if isinstance(value, dict)]
        values = [item for value in lists for item in value] if part == "[]" else [value.get(part) for value in objects]
    return marks(values)


def _decoded(value: Any) -> Any:
    try:
        return json.loads(value)
    except (TypeError, ValueError):
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value


def _names(value: Any) -> set[str]:
    """The keys in a value whose own values have any content."""
    if isinstance(value, str):
        value = _decoded(value)
    if isinstance(value, dict):
        return {key for key, item in value.items() if holds(item)}.union(*map(_names, value.values()))
    return set[str]().union(*map(_names, value)) if isinstance(value, list) else set()


values = st.recursive(
    st.none() | st.integers() | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
)


@pytest.mark.slow
@given(st.dictionaries(st.text("ab", min_size=1, max_size=2), values, max_size=4), st.data())
def test_the_unread_fields_are_the_rest(record: dict[str, Any], data: st.DataObject) -> None:
    """Reading some leaves, in any order: the fields that are left hold all other leaves, and none that was read."""
    row = Row(record)
    leaves = list(_leaves(record, ()))
    read = data.draw(st.lists(st.sampled_from(leaves), unique=True)) if leaves else []
    for path in read:
        field: Any = row
        for key in path:
            field = field[key] if isinstance(key, str) else field.items()[key]
        field.take()
    left = {leaf for field in row.unread() for leaf in _below(field.path, leaves)}
    assert left == {_spelled(path) for path in set(leaves) - set(read)}


def _leaves(value: Any, path: tuple[Any, ...]) -> Any:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    if not keys and holds(value):
        yield path
    for key in keys:
        yield from _leaves(value[key], (*path, key))


def _spelled(path: tuple[Any, ...]) -> str:
    parts = (f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return "".join(parts).removeprefix(".")


def _below(prefix: str, leaves: list[tuple[Any, ...]]) -> list[str]:
    spelled = [_spelled(leaf) for leaf in leaves]
    return [leaf for leaf in spelled if leaf == prefix or leaf.startswith((f"{prefix}.", f"{prefix}["))]


def test_a_parser_that_forgets_a_key_is_found() -> None:
    """The control of the two tests above."""
    row = Row({"prompt": "p", "chosen": [{"content": "c", "tool_calls": [1]}], "x": 1})
    row["prompt"].text()
    row["chosen"].items()[0]["content"].text()
    assert [field.path for field in row.unread()] == ["chosen[0].tool_calls", "x"]
    with pytest.raises(Exception, match="format plain does not read it"):
        ignored(row, "format plain")
