"""Files as other projects publish them: packed, in other encodings, with other delimiters, beside a README."""

import gzip
import json
import logging
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefdag.formats.files import beside
from prefdag.formats.records import read_records
from prefdag.lifecycle.errors import DataError
from prefdag.pairs.schema import read_pairs

ROW = {"prompt": 'a,"b"; c', "chosen": "é\nc", "rejected": "r"}
JSONL = json.dumps(ROW, ensure_ascii=False) + "\n"


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


def table(divided_by: str) -> str:
    return pd.DataFrame([ROW]).to_csv(index=False, sep=divided_by)


def arrow(kind: str, **options: Any) -> bytes:
    """One row per batch."""
    rows = pa.Table.from_pylist([ROW | {"turns": [{"a": 1}, {"b": None}]}], **options)
    sink = pa.BufferOutputStream()
    with (pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file)(sink, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=1)
    return bytes(sink.getvalue().to_pybytes())


FILES: dict[str, bytes] = {
    "a.jsonl": JSONL.encode(),
    "a.ndjson": JSONL.encode(),
    "utf-16.jsonl": JSONL.encode("utf-16"),
    "utf-16-be.json": b"\xfe\xff" + json.dumps([ROW], ensure_ascii=False).encode("utf-16-be"),
    "utf-32.csv": table(",").encode("utf-32"),
    "a.jsonl.zst": zstd(JSONL.encode()),
    "two-frames.json.zst": zstd(b"[") + zstd(json.dumps([ROW]).encode()[1:]),
    "a.csv.gz": gzip.compress(table(",").encode()),
    "commas.csv": table(",").encode(),
    "semicolons.csv": table(";").encode(),
    "tabs.csv": table("\t").encode(),
    "blank-lines-first.csv": b"\r\n\n" + table(";").encode(),
    "bars.csv": table("|").encode(),
    "a.tsv": table("\t").encode(),
    "data-00000-of-00001.arrow": arrow("stream"),
    "file.arrow": arrow("file"),
    "file.feather": arrow("file"),
    "quoted.csv": table(";").replace("prompt", '"prompt"').encode(),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_in_any_form_is_the_same_row(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    (pair,) = read_pairs(tmp_path, "plain").to_dict("records")
    assert pair["fault"] != pair["fault"], pair["fault"]
    assert (pair["prompt"][0]["content"], pair["chosen"], pair["rejected"]) == tuple(ROW.values())


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.jsonl.zst", zstd(JSONL.encode() * 99)[:-5], "a.jsonl.zst: not a complete Zstandard file (Truncated"),
        ("a.jsonl.zst", JSONL.encode(), "a.jsonl.zst: not a complete Zstandard file"),
        ("a.arrow", arrow("stream")[:-200], "a.arrow:1: not readable Arrow ("),
        ("a.arrow", arrow("file")[:-20], "a.arrow:1: not readable Arrow ("),
        ("a.arrow", b"", "a.arrow:1: not readable Arrow ("),
        ("a.arrow.gz", gzip.compress(arrow("file")), "a.arrow.gz: not .json, .jsonl, .csv, .tsv (or one of these with"),
        ("a.jsonl", JSONL.encode("utf-16")[:-1], "a.jsonl: not UTF-16 ("),
        (
            "a.csv",
            b"prompt,chosen;rejected\np,c;r\n",
            "a.csv:header: has ',' and ';', so it is unclear which divides it",
        ),
        (
            "a.json",
            json.dumps({"a": 1, "b": []}, indent=1).encode(),
            "a.json: one object with the keys a, b; write a list",
        ),
        *(
            ("a.json", json.dumps(value).encode(), f"a.json: {line}")
            for value, line in (
                (
                    {"prompt": ["p"], "chosen": ["c"]},
                    "columns (prompt, chosen) where rows are needed; in pandas, to_json(path,",
                ),
                (
                    {"prompt": {"0": "p"}, "chosen": {"0": "c"}},
                    "columns (prompt, chosen) where rows are needed; in pandas",
                ),
                ({"0": ROW, "1": ROW}, "an object of rows by number; write a list, or one row per line"),
                (
                    {"version": 1, "data": [ROW]},
                    "rows in 'data', beside other keys (version, data); keep only {'data': [...]}",
                ),
            )
        ),
        (
            "a.jsonl",
            json.dumps(ROW, indent=1).encode() * 2,
            "a.jsonl: objects that span several lines; write a list, or",
        ),
        ("a.json", b'{"train": [], "test": []}', "a.json: has no rows"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, line: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        read_pairs(tmp_path, "plain")
    assert str(error.value).startswith(line)


def test_a_title_above_the_header_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("My pairs\nprompt,chosen,rejected\np,c,r\n")
    assert read_pairs(tmp_path, "plain")["fault"][0].endswith("; the first line must be the header")


def test_a_ragged_row_names_its_delimiter(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt;chosen;rejected\np;c\n")
    assert read_pairs(tmp_path, "plain")["fault"][0].endswith("quote cells that contain semicolons or line breaks")


@pytest.mark.parametrize("dump", [json.dumps, lambda value: json.dumps(value, indent=1)], ids=["line", "indented"])
def test_an_object_of_splits(tmp_path: Path, dump: Callable[[object], str]) -> None:
    (tmp_path / "a.json").write_text(
        dump({"train": [ROW, ROW], "validation": [ROW], "test_prefs": [ROW | {"split": "dev"}]})
    )
    pairs = read_pairs(tmp_path, "auto")
    assert pairs["source"].tolist() == [
        f"a.json:{row}" for row in ("train:1", "train:2", "validation:1", "test_prefs:1")
    ]
    assert pairs["split"].tolist() == ["train", "train", "val", "val"]  # a row's own split goes first


def test_an_object_with_the_list_of_rows(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"data": [ROW]}))
    pairs = read_pairs(tmp_path, "auto")
    assert (pairs["source"].tolist(), pairs["split"].isna().all()) == (["a.json:data:1"], True)


def test_a_single_row_with_lists_of_turns_is_no_object_of_splits(tmp_path: Path) -> None:
    turns = {
        side: [{"role": "user", "content": "p"}, {"role": "assistant", "content": side}]
        for side in ("chosen", "rejected")
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(turns))
    assert read_pairs(tmp_path, "auto")["chosen"].tolist() == ["chosen"]


def test_what_is_beside_the_data_is_passed_over_and_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "data").mkdir()
    (tmp_path / ".cache").mkdir()
    (tmp_path / "data/a.jsonl").write_text(JSONL)
    for name in (
        "README.md",
        ".gitattributes",
        "LICENSE",
        "dataset_infos.json",
        ".DS_Store",
        ".cache/x.json",
        "data/CARD.md",
    ):
        (tmp_path / name).write_text("{")
    assert len(read_pairs(tmp_path, "plain")) == 1
    (line,) = caplog.messages
    assert line.startswith("download_pairs.source: not read, since they are no data: ")
    assert line.endswith(".gitattributes, LICENSE, README.md and 2 more")
    (tmp_path / "data/a.jsonl").unlink()
    with pytest.raises(DataError, match=r"no files but \.DS_Store, .*; check download_pairs\.source"):
        read_pairs(tmp_path, "plain")


@pytest.mark.parametrize(
    "name", ["readme.jsonl", "licence.txt", "a/.b/c.json", "dataset_info.json", "Thumbs.db", "x.md", "cache-0f3e.arrow"]
)
def test_names_that_are_no_data(name: str) -> None:
    assert beside(name)
    assert not beside("read/me/train.jsonl")


def test_parquet_fills_objects_with_nulls_which_are_nothing(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c", "tool_calls": [{"name": "f"}]}]
    pq.write_table(pa.table({"chosen": [turns], "label": [None]}), tmp_path / "a.parquet")
    ((number, record),) = read_records(tmp_path / "a.parquet", "a.parquet")
    assert (number, record) == (1, {"chosen": turns, "label": None})


def test_values_of_tables_that_json_does_not_have(tmp_path: Path) -> None:
    row = {
        "prompt": b"p",
        "chosen": "c",
        "rejected": "r",
        "source": {"at": datetime(2026, 1, 2), "on": date(2026, 1, 2)},
        "preference": Decimal("0.75"),
    }
    pq.write_table(pa.Table.from_pylist([row, row | {"prompt": b"\xff"}]), tmp_path / "a.parquet")
    pairs = read_pairs(tmp_path, "auto")
    assert (pairs["prompt"][0][0]["content"], pairs["preference"][0]) == ("p", 0.75)
    assert json.loads(pairs["origin"][0]) == {"at": "2026-01-02 00:00:00", "on": "2026-01-02"}
    assert (pairs["fault_column"][1], pairs["fault"][1][:25]) == ("prompt", "bytes that are not UTF-8,")
