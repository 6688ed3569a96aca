"""Token ids in one mapped array: the rows of the file, without copies of their tokens."""

import resource
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from tasks import preference_of
from text_project import frame_of, pairs_of

from prefdag.lifecycle.errors import DataError
from prefdag.lifecycle.exits import exit_code, one_line
from prefdag.text.dpo_task import dpo_task
from prefdag.text.scoring import formatted, rows
from prefdag.text.scoring.packing import batches
from prefdag.text.sft_task import sft_task

PARTS = formatted.PARTS


def ids_of(pairs: formatted.FormattedPairs) -> list[list[list[int]]]:
    return [[pairs.part(row, number).tolist() for number in range(3)] for row in range(len(pairs))]


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    """Eight rows, also in train.parquet, in row groups of three; the second has no chosen response."""
    frame = frame_of(8)
    frame.at[1, "chosen_ids"], frame.at[1, "chosen_truncated"] = np.array([], dtype=np.int64), True
    frame.to_parquet(tmp_path / "train.parquet", row_group_size=3)
    return frame


@pytest.mark.parametrize("part", [1, 3, 5, 100])
def test_a_split_has_the_rows_of_the_file(
    part: int, frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "PART", part)
    pairs = rows.read_split(tmp_path, "train")
    expected = [
        [ids[:-1].tolist() if cut else ids.tolist() for ids, cut in zip(row[::2], row[1::2], strict=True)]
        for row in frame.assign(cut=False)[
            ["prompt_ids", "cut", "chosen_ids", "chosen_truncated", "rejected_ids", "rejected_truncated"]
        ].itertuples(index=False, name=None)
    ]
    assert ids_of(pairs) == expected
    assert pairs.ids == frame["id"].tolist()
    assert pairs.preference.tolist() == [1.0] * 8
    assert ids_of(rows.with_chosen(pairs)) == [row for row in expected if row[1]]
    several = list(rows.parts_of(tmp_path, "train"))
    assert [len(each) for each in several] == [min(part, 8 - first) for first in range(0, 8, part)]
    assert [row for each in several for row in ids_of(each)] == expected


def test_a_slice_of_a_batch_is_read_from_where_it_starts(frame: pd.DataFrame) -> None:
    batch = pa.RecordBatch.from_pandas(frame).select(formatted.COLUMNS.names).cast(formatted.COLUMNS)
    assert ids_of(formatted.of_batch(batch.slice(3, 4))) == ids_of(pairs_of(frame))[3:7]


@pytest.mark.usefixtures("frame")
def test_rows_are_views_of_one_mapped_file(tmp_path: Path) -> None:
    pairs = rows.read_split(tmp_path, "train")
    mapped: Any = pairs.tokens
    while isinstance(mapped.base, np.ndarray):
        mapped = mapped.base
    assert isinstance(mapped, np.memmap)
    taught = rows.with_chosen(pairs)
    pair, group = rows.pair_rows(pairs, mismatched=True)[0], rows.chosen_groups(taught)[0]
    for ids in (*pair, group.prompt, *group.responses):
        assert isinstance(ids, np.ndarray)
        assert np.shares_memory(ids, pairs.tokens)


@pytest.mark.slow
def test_tasks_keep_a_few_numbers_per_row_and_no_tokens(tmp_path: Path) -> None:
    """Tokens would take 4,800 bytes per row in arrays, a pair of arrays 500; `tracemalloc` counts them, not mapped files."""
    n, length = 1_000, 400
    ids = [np.arange(i, i + length, dtype=np.int32) for i in range(n)]
    columns = {f"{part}_ids": ids for part in PARTS}
    cut = dict.fromkeys(("chosen_truncated", "rejected_truncated"), False)
    frame = pd.DataFrame({"id": [f"{i:016x}" for i in range(n)], "preference": 1.0, **columns, **cut})
    frame.to_parquet(tmp_path / "train.parquet")

    def made() -> tuple[Any, ...]:
        pairs = rows.read_split(tmp_path, "train")
        each = rows.pair_rows(pairs)
        preferred = dpo_task(each, pairs.ids, preference_of("sigmoid"), lambda rows: pytest.fail("not called"))
        places = list(batches((pair.group for pair in each), 4096))
        return preferred, sft_task(rows.chosen_groups(pairs), pairs.ids), places

    made()  # the first time imports modules, which take memory of their own
    tracemalloc.start()
    try:
        *_, places = made()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(map(len, places)) == n
    assert kept < 400 * n


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns="chosen_ids"), "chosen_ids"),
        (lambda frame: frame.assign(id=[None, *frame["id"][1:]]), "'id'"),
        (lambda frame: frame.assign(prompt_ids=[None, *frame["prompt_ids"][1:]]), "'prompt_ids'"),
        (lambda frame: frame.assign(prompt_ids=[[1, None], *frame["prompt_ids"][1:]]), "null"),
        (lambda frame: frame.assign(prompt_ids="text"), "string"),
        (lambda frame: frame.assign(rejected_ids=[[2**31], *frame["rejected_ids"][1:]]), "2147483648"),
        (lambda frame: frame.assign(prompt_ids=[[], *frame["prompt_ids"][1:]]), "a row without a prompt"),
    ],
    ids=["no column", "no id", "no prompt", "a null token", "text", "too large", "an empty prompt"],
)
def test_another_table_is_refused(change: Any, message: str, frame: pd.DataFrame, tmp_path: Path) -> None:
    change(frame).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train.parquet: not as format_pairs writes it") as error:
        rows.read_split(tmp_path, "train")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
@pytest.mark.usefixtures("frame")
def test_a_full_temporary_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        with pytest.raises(OSError, match="too large") as error:
            rows.read_split(tmp_path, "train")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert one_line(error.value, "dpo_text") == f"{tmp_path}: File too large"
    assert exit_code(error.value) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["train.parquet"]
