"""Prompts from a source: how rows are read, and which prompts are dropped."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from dialogues import user

from prefdag.lifecycle.errors import DataError
from prefdag.pairs.eval_sets import EvalRow
from prefdag.pairs.turns import read_dialogues
from prefdag.rounds.prompts import prompt_table, read_prompts, without_evals
from prefdag.text.evaluation.judge import chosen_responses
from prefdag.tokenizer.dialogue import Encoded


def read(folder: Path, *rows: Any) -> list[dict[str, Any]]:
    (folder / "raw").mkdir(exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "raw" / "mine.jsonl").write_text("\n".join(lines))
    return list(read_prompts(folder / "raw"))


def test_a_prompt_is_a_text_or_a_dialogue(tmp_path: Path) -> None:
    earlier = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    tool = {"type": "function", "function": {"name": "f"}}
    rows = read(
        tmp_path,
        {"prompt": "What is 1 + 1?", "chosen": "2", "topic": "sums"},
        {"messages": [*earlier, {"role": "user", "content": "Bye"}], "tools": [tool]},
        {"prompt": "Hi", "system": "Be brief"},
    )
    assert [row["prompt"] for row in rows] == [
        user("What is 1 + 1?"),
        [*earlier, *user("Bye")],
        [{"role": "system", "content": "Be brief"}, *user("Hi")],
    ]
    assert [row["source"] for row in rows] == ["mine.jsonl:1", "mine.jsonl:2", "mine.jsonl:3"]
    assert [row["chosen"] for row in rows] == ["2", None, None]
    assert json.loads(rows[1]["tools"]) == [tool]
    assert len({row["id"] for row in rows}) == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "Hi"}, "mine.jsonl:2: no prompt; write a text as prompt, or a dialogue as messages"),
        ({"prompt": 3}, "mine.jsonl:2: prompt: "),
        (
            {"messages": [{"role": "assistant", "content": "x"}]},
            "mine.jsonl:2: messages: the prompt ends with an assistant",
        ),
        (
            {"prompt": "Hi", "image": "x.png"},
            "mine.jsonl:2: image: not read, and the prompt would be another one without it",
        ),
        ("{broken", "mine.jsonl:2: "),
    ],
)
def test_a_row_that_cannot_be_read_is_named_in_one_line(row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, {"prompt": "Hi"}, row)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


class Letters:
    """A tokenizer of letters, with a dialogue's last turn as its text."""

    def dialogue(self, messages: Sequence[Any], tools: Any) -> "Letters":
        self.text = messages[-1]["content"]
        if self.text == "refused":
            raise DataError("no template for it")
        return self

    def prompt(self, most: int) -> Encoded:
        ids = list(map(ord, self.text))
        return Encoded(ids[-most:], self.text, len(ids))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    folder = tmp_path / "pairs"
    folder.mkdir()
    for split, text in (("train", "one"), ("val", "Two"), ("test", "a much longer three")):
        own = {"prompt": [text], "prompt_ids": [list(map(ord, text))[-9:]]}
        pd.DataFrame(own).to_parquet(folder / f"{split}.parquet")
    return folder


def test_prompts_of_the_pairs_and_repeated_ones_are_dropped(
    pairs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In other letters, with other white space, or if the same tokens remain after the cut."""
    texts = ["new", "ONE", " two", "another  longer three", "NEW", "newer", "new"]
    rows = read(tmp_path, *({"prompt": text} for text in texts))
    tokenizer: Any = Letters()
    table = prompt_table(rows, pairs, tokenizer, 9)
    assert table["source"].tolist() == ["mine.jsonl:1", "mine.jsonl:6"]
    assert table["prompt_ids"].tolist() == [list(map(ord, "new")), list(map(ord, "newer"))]
    assert (
        "of 7 prompts, 2 repeat another one, and 3 are in data/pairs (train, val or test); they are dropped"
        in caplog.text
    )
    with pytest.raises(DataError, match=r"^mine.jsonl:1: no template for it$"):
        prompt_table(read(tmp_path, {"prompt": "refused"}), pairs, tokenizer, 9)


def test_prompts_with_a_row_of_an_eval_set_are_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A whole question, or 13 of its words in a row, in any turn."""
    words = [f"w{i}" for i in range(14)]
    rows = read(
        tmp_path,
        {"prompt": "What happens to you if you eat seeds?"},
        {"prompt": f"Well, {' '.join(words[:13])}?"},
        {"prompt": f"Well, {' '.join(words[:12])}?"},
        {"messages": [*user("Why is it dark?"), {"role": "assistant", "content": "It is."}, *user("Why?")]},
    )
    asked = ("what happens to you if you eat SEEDS", " ".join(words), "Why is it dark?")
    sets = {
        "truthfulqa": [
            EvalRow(
                source=f"a.csv:{i}", prompt=user(text), response="Y", right_responses=("Y",), wrong_responses=("N",)
            )
            for i, text in enumerate(asked, 1)
        ]
    }
    assert [row["source"] for row in without_evals(rows, sets)] == ["mine.jsonl:3"]
    assert "3 prompts contain a row of an eval set (mine.jsonl:1 has a.csv:1); they are dropped" in caplog.text
    caplog.clear()
    assert without_evals(rows, {}) == rows
    assert not caplog.text


def test_judges_read_the_prompts_as_those_of_pairs(pairs: Path, tmp_path: Path) -> None:
    rows = read(tmp_path, {"prompt": "new", "chosen": "7"}, {"prompt": "Hi", "system": "Be brief"})
    tokenizer: Any = Letters()
    table = prompt_table(rows, pairs, tokenizer, 9)
    table.drop(columns="prompt_ids").to_parquet(tmp_path / "prompts.parquet")
    first, second = table["id"]
    dialogues = read_dialogues(tmp_path / "prompts.parquet", table["id"])
    assert (dialogues[first].messages, dialogues[first].tools) == (user("new"), None)
    assert dialogues[second].messages == [{"role": "system", "content": "Be brief"}, *user("Hi")]
    assert chosen_responses(tmp_path / "prompts.parquet", [first]) == {first: "7"}
