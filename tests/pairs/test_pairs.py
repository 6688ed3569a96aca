"""Splits without leaks, and the rows that format_pairs writes."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dialogues import write_byte_tokenizer
from format_settings import format_settings
from hypothesis import given
from hypothesis import strategies as st

from prefdag.config.format_pairs import FormatPairs
from prefdag.lifecycle.errors import DataError, ParamsError
from prefdag.pairs import batches
from prefdag.pairs import formatting as pairs
from prefdag.pairs.encoding import PAIRS_SCHEMA, PARTS
from prefdag.pairs.formatting import FormattingReport, format_pairs
from prefdag.pairs.limits import Limits
from prefdag.pairs.splits import SPLITS, Keys, digest, group_rows, split_by_prompt
from prefdag.tokenizer.tokenizer import ChatTokenizer

FORMAT = format_settings()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    """Bytes and EOS (id 256): one token per letter."""
    folder = tmp_path_factory.mktemp("model")
    return ChatTokenizer(write_byte_tokenizer(folder, ["</s>"], None, merges=(), eos_token="</s>"), "instruction")


def table(rows: Sequence[tuple[str, str | None, str | None]]) -> pa.Table:
    """(question, chosen, rejected) rows as validate_pairs writes them."""
    records: list[dict[str, Any]] = [
        {
            "id": f"{number:016x}",
            "source": f"pairs.json:{number}",
            "prompt": [{"role": "user", "content": question}],
            "chosen": chosen,
            "rejected": rejected,
            "preference": 1.0,
        }
        for number, (question, chosen, rejected) in enumerate(rows, 1)
    ]
    return pa.Table.from_pylist(records)


def format_rows(
    source: pa.Table, tokenizer: ChatTokenizer, params: FormatPairs
) -> tuple[dict[str, pa.Table], dict[str, Any], FormattingReport, list[list[str]]]:
    """The splits and the summary that `format_pairs` writes, its whole report, and the rows of changes.csv."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        pq.write_table(source, folder / "source.parquet")
        (folder / "out").mkdir()
        report = format_pairs(folder / "source.parquet", folder / "out", folder / "changes.csv", tokenizer, params)
        assert sorted(path.stem for path in (folder / "out").iterdir()) == sorted(SPLITS)
        tables = {split: pq.read_table(folder / "out" / f"{split}.parquet") for split in SPLITS}
        with (folder / "changes.csv").open(newline="") as file:
            return tables, report.summary, report, list(csv.reader(file))[1:]


def test_format_rows_by_hand(tokenizer: ChatTokenizer) -> None:
    rows = [(f"question {n}", "yes", "no, not at all, never") for n in range(10)]
    tables, summary, *_ = format_rows(table(rows), tokenizer, FORMAT)
    assert list(tables) == list(SPLITS)
    assert all(t.schema.equals(PAIRS_SCHEMA) for t in tables.values())
    assert summary["rows"] == {"train": 10 - 2 - 2, "val": 0.2 * 10, "test": 0.2 * 10}
    assert summary["chosen"]["truncated"] == 0.0
    assert summary["rejected"]["truncated"] == 1.0
    assert summary["chosen"]["tokens"] == 10 * (len("yes") + 1)  # with EOS
    assert summary["rejected"]["length_p100"] == len("no, not at all, never") + 1
    for row in tables["train"].to_pylist():
        assert tokenizer.decode(row["chosen_ids"]) == "yes</s>"
        assert tokenizer.decode(row["rejected_ids"]) == "no, not at all, nev</s>"
        assert (row["chosen_truncated"], row["rejected_truncated"]) == (False, True)
        assert tokenizer.decode(row["prompt_ids"]) == row["prompt"]
    ids = [row["id"] for name in SPLITS for row in tables[name].to_pylist()]
    assert len(set(ids)) == 10
    assert all(t["id"].to_pylist() == sorted(t["id"].to_pylist()) for t in tables.values())  # in the source's order


def test_pairs_that_the_cut_makes_identical_are_left_out(
    tokenizer: ChatTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [(f"question {n}", "yes", "no") for n in range(9)] + [("dead", "x" * 20 + "yes", "x" * 20 + "no")]
    tables, summary, *_ = format_rows(table(rows), tokenizer, FORMAT)
    assert summary["changes"][-1] == {"change": "left out", "column": "rejected", "rows": 1}
    assert sum(t.num_rows for t in tables.values()) == 9
    assert (
        "1 of 10 pairs are left out, the first: pairs.json:10:rejected: the cut leaves the same tokens" in caplog.text
    )
    format_rows(table(rows), tokenizer, replace(FORMAT, max_left_out=1 / 10))
    with pytest.raises(DataError, match=r"^1 of 10 pairs .*; raise format_pairs.max_response_tokens or max_left_out$"):
        format_rows(table(rows), tokenizer, replace(FORMAT, max_left_out=0.09))


def test_format_unpaired_rows_by_hand(tokenizer: ChatTokenizer) -> None:
    """Three chosen responses to one rejected one of another length: each side counts its own responses."""
    rows = [(f"question {n}", *((None, "no, not at all, never") if n % 4 == 0 else ("yes", None))) for n in range(40)]
    tables, summary, *_ = format_rows(table(rows), tokenizer, FORMAT)
    assert all(t.schema.equals(PAIRS_SCHEMA) for t in tables.values())
    assert not any(change["change"] == "left out" for change in summary["changes"])
    assert (summary["chosen"]["tokens"], summary["chosen"]["length_p100"]) == (30 * (len("yes") + 1), len("yes") + 1)
    assert (summary["rejected"]["tokens"], summary["rejected"]["truncated"]) == (10 * 20, 1.0)  # cut to 20
    written = [row for name in SPLITS for row in tables[name].to_pylist()]
    assert len(written) == 40
    for row in written:
        side, other = ("chosen", "rejected") if row["rejected"] is None else ("rejected", "chosen")
        assert tokenizer.decode(row[f"{side}_ids"]) in ("yes</s>", "no, not at all, nev</s>")
        assert (row[other], row[f"{other}_ids"], row[f"{other}_truncated"]) == (None, [], False)


def test_responses_of_one_prompt_share_a_split(tokenizer: ChatTokenizer) -> None:
    rows = [(f"question {n // 4}", *(("yes", None) if n % 2 else (None, "no"))) for n in range(80)]
    tables, *_ = format_rows(table(rows), tokenizer, FORMAT)
    prompts = [set(t["prompt"].to_pylist()) for t in tables.values()]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 80 / 4


@pytest.mark.parametrize(("side", "kind"), [("chosen", "desirable"), ("rejected", "undesirable")])
def test_a_split_without_responses_of_a_kind_is_named(tokenizer: ChatTokenizer, side: str, kind: str) -> None:
    """The error comes here, before training: the model could not be evaluated."""
    responses = ("no", None) if side == "rejected" else (None, "no")
    rows = [(f"question {n}", *responses) for n in range(10)]
    with pytest.raises(
        DataError, match=f"^data/validated/pairs.parquet: column {side}: no {kind} .* 6 rows .* train; "
    ):
        format_rows(table(rows), tokenizer, FORMAT)


def test_a_split_with_fraction_zero_may_be_empty(tokenizer: ChatTokenizer) -> None:
    rows = [(f"question {n}", "yes", "no") for n in range(10)]
    tables, *_ = format_rows(table(rows), tokenizer, replace(FORMAT, val_fraction=0.0))
    assert tables["val"].num_rows == 0


def test_max_pairs_keeps_the_first_rows(tokenizer: ChatTokenizer) -> None:
    rows = [(f"question {n}", "yes", "no") for n in range(20)]
    tables, *_ = format_rows(table(rows), tokenizer, replace(FORMAT, max_pairs=10))
    sources = {row["source"] for t in tables.values() for row in t.to_pylist()}
    assert sources == {f"pairs.json:{n}" for n in range(1, 11)}


def test_prompts_that_become_equal_when_cut_share_a_split(tokenizer: ChatTokenizer) -> None:
    rows = [(f"{n} of twenty: go on", "yes", "no") for n in range(20)]
    with pytest.raises(DataError, match="20 pairs with 1 distinct prompts leave val and test empty"):
        format_rows(table(rows), tokenizer, replace(FORMAT, max_prompt_tokens=20))


def test_a_second_run_writes_the_same_bytes(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    rows = [(f"question {n}", "yes", "no") for n in range(10)]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pq.write_table(table(rows), tmp_path / "source")
        format_pairs(tmp_path / "source", tmp_path / name, tmp_path / "changes", tokenizer, FORMAT)
    files = [tmp_path / name / "train.parquet" for name in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert pq.read_schema(files[0]).field("prompt_ids").type == pa.list_(pa.int32())


def test_examples_are_the_shortest_the_median_and_the_longest(tokenizer: ChatTokenizer) -> None:
    params = replace(FORMAT, val_fraction=0.0, test_fraction=0.0)
    _, _, report, _ = format_rows(table([("x" * n, "a", "b") for n in (5, 1, 9, 7, 3)]), tokenizer, params)
    assert [example["source"] for example in report.examples] == ["pairs.json:2", "pairs.json:1", "pairs.json:3"]
    _, _, report, _ = format_rows(table([("x", "a", "b")]), tokenizer, params)
    assert len(report.examples) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "cores"), [(1, "1"), (7, "1"), (7, "3"), (100, "3")])
def test_the_batch_size_and_the_cores_change_nothing(
    tokenizer: ChatTokenizer, batch: int, cores: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of which some are cut and some are left out. Boundaries are checked for a sample of the rows."""
    rows = [(f"question {n // 2}", "x" * n, "no" if n % 3 else "x" * (n + 1)) for n in range(1, 41)]
    params = replace(FORMAT, max_left_out=0.9)
    monkeypatch.setattr(pairs, "BOUNDARIES", 10)
    monkeypatch.setattr(batches, "BATCH", 1000)
    at_once = format_rows(table(rows), tokenizer, params)
    assert 0 < at_once[1]["boundary"]["responses"] < 40
    assert {change["change"] for change in at_once[1]["changes"]} == {"cut", "left out"}
    monkeypatch.setattr(batches, "BATCH", batch)
    monkeypatch.setattr(batches, "CHUNK", 3)
    monkeypatch.setenv("OMP_NUM_THREADS", cores)
    in_batches = format_rows(table(rows), tokenizer, params)
    assert in_batches[1:] == at_once[1:]
    assert all(in_batches[0][split].equals(at_once[0][split]) for split in SPLITS)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [3, 1000])
@pytest.mark.parametrize("bos", [False, True])
def test_limits_of_auto_cut_as_the_same_limits_of_params(
    bos: bool, batch: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A row is encoded once, and cut when the limits are known. Some have one response, or control tokens typed in them."""
    specials = ["<s>", "</s>"]
    folder = write_byte_tokenizer(tmp_path, specials, None, bos, (), bos_token="<s>", eos_token="</s>")
    tokenizer = ChatTokenizer(folder, "instruction")
    rows = [
        (f"question</s> {n // 2} {'y' * n}", "x" * n, None if n % 5 == 0 else "no" if n % 3 else f"<s>{'x' * (n + 1)}")
        for n in range(1, 61)
    ]
    monkeypatch.setattr(batches, "BATCH", batch)
    auto = format_rows(table(rows), tokenizer, replace(FORMAT, max_prompt_tokens="auto", max_response_tokens="auto"))
    limits = {name: auto[1][name] for name in Limits._fields}
    given = format_rows(table(rows), tokenizer, replace(FORMAT, **limits))
    assert auto[1:] == given[1:]
    assert all(auto[0][split].equals(given[0][split]) for split in SPLITS)
    assert all(auto[1][part]["truncated"] > 0 for part in PARTS)


def test_a_row_that_cannot_be_encoded_is_named(tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise DataError("no")

    monkeypatch.setattr(tokenizer, "dialogue", refuse)
    with pytest.raises(DataError, match=r"^pairs.json:1: no$"):
        format_rows(table([("a", "b", "c")]), tokenizer, FORMAT)


def test_fractions_that_leave_nothing_to_train_on_are_refused(tokenizer: ChatTokenizer) -> None:
    with pytest.raises(ParamsError, match=r"params.yaml: format_pairs: val_fraction \+ test_fraction"):
        format_rows(table([("a", "b", "c")]), tokenizer, replace(FORMAT, val_fraction=0.5, test_fraction=0.5))


def keys_of(rows: Sequence[Sequence[Any]], seed: int = 0) -> Keys:
    return np.array([[digest(key, seed) for key in row] for row in rows], dtype=np.uint64)


def test_group_rows_by_hand() -> None:
    groups = group_rows(keys_of([("a", 1), ("b", 2), ("c", 3), ("a", 2), ("c", 4)])).tolist()
    assert [groups.index(group) for group in groups] == [0, 0, 2, 0, 2]
    assert len(set(group_rows(keys_of([("a", "b"), ("b", "a")])))) == 2  # keys in different places are different keys


@pytest.mark.slow
@given(
    keys=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=60),
    val=st.sampled_from([0.0, 0.1, 0.3]),
    test=st.sampled_from([0.0, 0.25, 0.5]),
    seed=st.integers(0, 3),
)
def test_no_key_is_in_two_splits(keys: list[tuple[int, int]], val: float, test: float, seed: int) -> None:
    try:
        splits = split_by_prompt(keys_of(keys, seed), val, test).tolist()
    except DataError:
        return
    for place in range(2):
        splits_of: dict[int, set[str]] = {}
        for key, split in zip(keys, splits, strict=True):
            splits_of.setdefault(key[place], set()).add(split)
        assert all(len(names) == 1 for names in splits_of.values())
    assert splits == split_by_prompt(keys_of(keys, seed), val, test).tolist()
    largest = max(Counter(group_rows(keys_of(keys)).tolist()).values())
    assert splits.count("test") - test * len(keys) < largest
    assert splits.count("val") - val * len(keys) < largest


def test_split_sizes_of_single_prompts() -> None:
    keys = [(n,) for n in range(300)]
    splits = split_by_prompt(keys_of(keys), val_fraction=0.08, test_fraction=0.25).tolist()
    assert Counter(splits) == {"train": 300 - 24 - 75, "val": 0.08 * 300, "test": 0.25 * 300}
    assert splits != split_by_prompt(keys_of(keys, seed=1), 0.08, 0.25).tolist()


def test_the_order_of_the_rows_does_not_matter() -> None:
    """Not even in groups of several prompts."""
    keys = [(f"p{n}", n // 3) for n in range(60)]
    splits = split_by_prompt(keys_of(keys), 0.2, 0.2).tolist()
    assert split_by_prompt(keys_of(keys[::-1]), 0.2, 0.2).tolist() == splits[::-1]


def test_a_new_row_moves_few_others() -> None:
    keys = [(n,) for n in range(300)]
    before = split_by_prompt(keys_of(keys), 0.1, 0.2)
    after = split_by_prompt(keys_of([(1000,), *keys]), 0.1, 0.2)[1:]
    assert sum(a != b for a, b in zip(before, after, strict=True)) <= 2


def test_zero_fractions_leave_splits_empty_and_too_few_prompts_are_refused() -> None:
    assert split_by_prompt(keys_of([("a",), ("b",)]), 0.0, 0.0).tolist() == ["train", "train"]
    with pytest.raises(DataError, match="2 pairs with 2 distinct prompts leave val empty; add pairs"):
        split_by_prompt(keys_of([("a",), ("b",)]), 0.1, 0.4)
