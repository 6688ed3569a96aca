"""Rows with more than texts: tools, reasoning, published splits, rendered prompts, open blocks; and limits by the data."""

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat_templates import tokenizer_of
from format_settings import format_settings
from hypothesis import given
from hypothesis import strategies as st

from prefdag.lifecycle.errors import DataError
from prefdag.pairs.formatting import format_pairs
from prefdag.pairs.splits import LEFT_OUT, SPLITS, split_by_prompt
from prefdag.tokenizer.tokenizer import ChatTokenizer

PARAMS = format_settings(
    template="chat", max_prompt_tokens=900, max_response_tokens=900, val_fraction=0.0, test_fraction=0.0
)
CALLS = json.dumps({"tool_calls": [{"type": "function", "function": {"name": "find", "arguments": {"q": "x"}}}]})
TOOLS = json.dumps([{"type": "function", "function": {"name": "find", "parameters": {}}}])
TURN = pa.struct({"role": pa.string(), "content": pa.string(), "extra": pa.string()})
COLUMNS = {
    **dict.fromkeys(
        ("id", "source", "chosen", "rejected", "chosen_extra", "rejected_extra", "tools", "split"), pa.string()
    ),
    "prompt": pa.list_(TURN),
    "preference": pa.float64(),
}


def row(number: int = 1, prompt: str | list[dict[str, Any]] = "hi", **columns: Any) -> dict[str, Any]:
    """A validated row."""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    given = {"id": f"{number}", "source": f"a.json:{number}", "prompt": turns, "chosen": "yes", "rejected": "no"}
    return {"preference": 1.0, **given, **columns}


class Formatted:
    """What format_pairs writes for some rows."""

    def __init__(self, folder: Path, rows: list[dict[str, Any]], tokenizer: ChatTokenizer, **changes: Any) -> None:
        folder.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, pa.schema(COLUMNS)), folder / "rows.parquet")
        (folder / "out").mkdir()
        arguments = folder / "rows.parquet", folder / "out", folder / "changes.csv", tokenizer
        report = format_pairs(*arguments, replace(PARAMS, **changes), 5000)
        self.summary, self.examples = report.summary, report.examples
        self.rows = {split: pq.read_table(folder / f"out/{split}.parquet").to_pylist() for split in SPLITS}
        with (folder / "changes.csv").open(newline="") as file:
            self.changes = list(csv.reader(file))[1:]

    @property
    def places(self) -> dict[str, str]:
        """The split of each row, by its number."""
        return {each["id"]: split for split, rows in self.rows.items() for each in rows}


# Tools, calls, reasoning


def test_tools_calls_and_reasoning_are_part_of_a_row(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path / "model", "qwen 3")
    prompt = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "extra": CALLS},
        {"role": "tool", "content": "1 found", "extra": json.dumps({"tool_call_id": "c1", "name": "find"})},
    ]
    reasoning = json.dumps({"reasoning_content": "Enough."})
    formatted = Formatted(
        tmp_path,
        [row(prompt=prompt, chosen_extra=reasoning, rejected="", rejected_extra=CALLS, tools=TOOLS)],
        tokenizer,
    )
    [written] = formatted.rows["train"]
    assert tokenizer.decode(written["prompt_ids"]) == written["prompt"]
    assert '<tools>\n{"type": "function"' in written["prompt"]
    assert '<tool_call>\n{"name": "find", "arguments": {"q": "x"}}\n</tool_call>' in written["prompt"]
    assert "<tool_response>\n1 found" in written["prompt"]
    assert tokenizer.decode(written["chosen_ids"]) == "<think>\nEnough.\n</think>\n\nyes<|im_end|>"
    assert tokenizer.decode(written["rejected_ids"]).endswith("\n</tool_call><|im_end|>")
    assert (written["chosen"], written["chosen_truncated"]) == ("<think>\nEnough.\n</think>\n\nyes", False)
    [shown] = formatted.examples
    assert "".join(piece["text"] for piece in shown["chosen"]) == tokenizer.decode(written["chosen_ids"])
    assert {piece["kind"] for piece in shown["chosen"]} == {"scored"}
    assert {piece["kind"] for piece in shown["prompt"]} == {"read"}


@pytest.mark.parametrize(
    ("columns", "error"),
    [
        ({"tools": TOOLS}, "^a.json:1: tools: the chat template ignores it"),
        ({"chosen_extra": CALLS}, "^a.json:1: chosen: tool_calls: the chat template ignores it"),
        (
            {"rejected_extra": '{"reasoning_content": "x"}'},
            "^a.json:1: rejected: reasoning_content: the chat template ignores",
        ),
        (
            {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "extra": CALLS}] * 2},
            r"^a.json:1: prompt\[1\].tool_calls: the chat template ignores",
        ),
    ],
)
def test_a_column_that_the_template_ignores_is_named(tmp_path: Path, columns: dict[str, Any], error: str) -> None:
    with pytest.raises(DataError, match=error):
        Formatted(tmp_path, [row(**columns)], tokenizer_of(tmp_path / "model", "chatml"))


def test_what_the_template_changes_is_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    formatted = Formatted(tmp_path, [row(chosen=" yes\n"), row(2)], tokenizer_of(tmp_path / "model", "llama 3"))
    assert formatted.changes == [["a.json:1", "chosen", "altered", "the template changes its text or its white space"]]
    assert (
        "the chat template changes the chosen of 1 of 2 rows; the changes.csv of this stage lists them" in caplog.text
    )


def test_what_the_template_writes_around_answers_is_in_the_summary(tmp_path: Path) -> None:
    writes = Formatted(tmp_path, [row()], tokenizer_of(tmp_path / "model", "qwen 3")).summary["template_writes"]
    assert writes == {"before": "<think>\n\n</think>\n\n", "after": "", "end": "<|im_end|>"}


# Rows that were rendered already


RENDERED = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("name", ["chatml", "gemma"])  # its own marks, and those of another model
def test_rendered_rows_stop_the_stage(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tokenizer_of(tmp_path / "model", name)
    rows = [row(n, RENDERED if n == 3 else f"question {n}") for n in range(1, 11)]
    marked = (
        r"1 of 10 rows have the marks of a chat template, as if they were rendered already \(the first: a.json:3 has '<"
    )
    with pytest.raises(DataError, match=f"^data/validated/pairs.parquet: {marked}.*; use the plain turns"):
        Formatted(tmp_path / "stopped", rows, tokenizer, max_rendered=0.09)
    formatted = Formatted(tmp_path / "kept", rows, tokenizer, max_rendered=1 / 10)
    assert formatted.summary["rendered"] == {"rows": 1, "of": 10}
    assert "1 of 10 rows have the marks of a chat template" in caplog.text


def test_rows_rendered_by_the_instruction_template_stop_the_stage(tmp_path: Path) -> None:
    tokenizer_of(tmp_path / "model", "chatml")
    tokenizer = ChatTokenizer(tmp_path / "model", "instruction")
    rendered = tokenizer.prompt([{"role": "user", "content": "hi"}]).text
    with pytest.raises(DataError, match=r"1 of 1 rows .* has '### Response:'"):
        Formatted(tmp_path, [row(prompt=rendered)], tokenizer)


# Blocks


def test_responses_in_blocks_that_they_never_close_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = tokenizer_of(tmp_path / "model", "deepseek r1")
    rows = [row(1, chosen="<think>\na\n</think>\n\nb", rejected="no"), row(2, "so", rejected="a\n</think>\n\nb")]
    formatted = Formatted(tmp_path, rows, tokenizer)
    assert formatted.summary["unclosed"] == {"responses": 2, "of": 4, "blocks": ["<think>"]}
    assert (
        "2 of 4 responses stand inside a <think> block that they never close; add </think> to them, or" in caplog.text
    )
    assert tokenizer.decode(formatted.rows["train"][0]["chosen_ids"]) == "a\n</think>\n\nb<｜end｜>"


# Limits


def test_auto_limits_hold_95_percent_of_the_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tokenizer_of(tmp_path / "model", "chatml")
    rows = [row(n, "x" * n, chosen="y" * n, rejected="z") for n in range(1, 101)]
    formatted = Formatted(tmp_path, rows, tokenizer, max_prompt_tokens="auto", max_response_tokens="auto")
    around = len(tokenizer.prompt([{"role": "user", "content": ""}]).ids)
    assert formatted.summary["max_prompt_tokens"] == 95 + around
    # 200 responses: 100 of one character, and all lengths up to 100; with the end.
    assert formatted.summary["max_response_tokens"] == 90 + 1
    assert formatted.summary["prompt"]["truncated"] == 5 / 100
    assert formatted.summary["chosen"]["truncated"] == 10 / 100
    assert (
        "cut: 5.0% of the prompts, 10.0% of the chosen responses, 0.0% of the rejected responses (limits: "
        in caplog.text
    )
    assert "to keep more, raise format_pairs.max_auto_tokens, or set numbers instead of auto" in caplog.text


def test_nothing_is_said_of_cuts_if_there_are_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Formatted(tmp_path, [row()], tokenizer_of(tmp_path / "model", "chatml"))
    assert caplog.text == ""


# Published splits


def published(tmp_path: Path, splits: list[str | None], prompts: list[str] | None = None, **changes: Any) -> Formatted:
    prompts = prompts or [f"question {n}" for n in range(len(splits))]
    rows = [row(n, prompt, split=split) for n, (prompt, split) in enumerate(zip(prompts, splits, strict=True))]
    return Formatted(tmp_path, rows, tokenizer_of(tmp_path / "model", "chatml"), **changes)


def test_published_splits_are_kept(tmp_path: Path) -> None:
    """Whatever the fractions say."""
    splits: list[str | None] = ["test", "train", "val", "train", "test", "train"]
    formatted = published(tmp_path, splits, val_fraction=0.5, test_fraction=0.3)
    assert [formatted.places[f"{n}"] for n in range(6)] == splits
    assert formatted.summary["published"] == {"train": 3, "val": 1, "test": 2}


def test_a_split_that_is_not_published_is_taken_from_the_other_rows(tmp_path: Path) -> None:
    splits: list[str | None] = ["test"] * 10 + ["train"] * 8 + [None] * 2
    formatted = published(tmp_path, splits, val_fraction=0.2, test_fraction=0.5)
    assert Counter(formatted.places.values()) == {"test": 10, "val": 0.2 * 10, "train": 0.8 * 10}
    assert all(formatted.places[f"{n}"] == "test" for n in range(10))


def test_only_a_training_split_is_published(tmp_path: Path) -> None:
    formatted = published(tmp_path, ["train"] * 10, val_fraction=0.2, test_fraction=0.3)
    assert Counter(formatted.places.values()) == {"test": 3, "val": 2, "train": 5}


def test_a_prompt_in_two_published_splits_is_left_out_of_the_earlier_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Test goes before val, and val before train; an unpublished row goes with them."""
    prompts = ["a", "A", "b", "b", "c", "c", "d", "a"]
    formatted = published(tmp_path, ["test", "train", "train", "val", "test", "val", "train", None], prompts)
    assert formatted.places == {"0": "test", "3": "val", "4": "test", "6": "train", "7": "test"}
    reason = "its prompt is also in a published split that goes before its own"
    assert formatted.changes == [[f"a.json:{n}", "split", "left out", reason] for n in (1, 2, 5)]
    assert {"change": "left out", "column": "split", "rows": 3} in formatted.summary["changes"]
    assert "published splits share prompts: 3 rows are left out, the first: a.json:1:split: its prompt" in caplog.text
    assert formatted.summary["leaked"] == {"val": 0, "test": 0}


def test_nothing_published_to_train_on_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"leave train empty \(4 are published as val or test\); add pairs"):
        published(tmp_path, ["test", "test", "val", "val"])


def test_max_pairs_counts_in_each_published_split(tmp_path: Path) -> None:
    """Files are read in the order of their names, so test may come before train."""
    formatted = published(tmp_path, ["test"] * 5 + ["train"] * 5, max_pairs=2)
    assert formatted.places == {"0": "test", "1": "test", "5": "train", "6": "train"}


@pytest.mark.slow
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 20), st.sampled_from(["", "", "train", "val", "test"])),
        min_size=1,
        max_size=50,
    ),
    val=st.sampled_from([0.0, 0.2]),
    test=st.sampled_from([0.0, 0.3]),
)
def test_published_splits_hold_their_promises(rows: list[tuple[int, int, str]], val: float, test: float) -> None:
    keys = np.array([row[:2] for row in rows], dtype=np.uint64)
    names = np.array([row[2] for row in rows], dtype="U8")
    try:
        splits = split_by_prompt(keys, val, test, names)
    except DataError:
        return
    for split in ("val", "test"):
        if split in names:
            assert set(names[splits == split]) <= {split, ""}, "published splits get no rows of others"
    assert not (splits[names == "test"] == "train").any()
    assert not (splits[names == "test"] == "val").any()
    assert not (splits[names == "val"] == "train").any()
    assert (splits[names == "test"] == "test").all()  # nothing goes before it
    assert not (splits[names == ""] == LEFT_OUT).any()
    for column in range(2):
        for key in np.unique(keys[:, column]):
            assert len(set(splits[keys[:, column] == key]) - {LEFT_OUT}) <= 1
