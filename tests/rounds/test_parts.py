"""The answers of a round are kept part by part: a killed sampling goes on where it was."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from prefdag.rounds import parts

# Out of order, and longer than the size of a part.
PROMPTS = pd.DataFrame({"id": list("abcde"), "prompt_ids": [[1, 2, 3], [1], [1, 2], [1, 2, 3, 4], [1]]})
SAMPLES = 2


class Sampler:
    """Two rows for each prompt. Dies instead of its nth call."""

    def __init__(self, dies_at: int = 0) -> None:
        self.asked: list[list[str]] = []
        self.names: list[str] = []
        self.dies_at = dies_at

    def __call__(self, prompts: pd.DataFrame, name: str) -> pd.DataFrame:
        if len(self.asked) + 1 == self.dies_at:
            raise KeyboardInterrupt
        self.asked.append(list(prompts["id"]))
        self.names.append(name)
        rows = prompts.loc[prompts.index.repeat(SAMPLES)].reset_index(drop=True)
        return rows.assign(sample=list(range(SAMPLES)) * len(prompts), text=rows["id"] + "!")


def sample(folder: Path, sampler: Sampler) -> pd.DataFrame:
    return parts.read_parts(parts.sample_parts(folder, PROMPTS, 2, sampler), PROMPTS)


def test_rows_are_in_the_order_of_the_prompts(tmp_path: Path) -> None:
    sampler = Sampler()
    rows = sample(tmp_path, sampler)
    assert sampler.asked == [["b", "e"], ["c", "a"], ["d"]]  # of similar length
    assert rows[["id", "sample", "text"]].to_numpy().tolist() == [[i, n, f"{i}!"] for i in "abcde" for n in (0, 1)]
    assert [list(ids) for ids in rows["prompt_ids"][::SAMPLES]] == PROMPTS["prompt_ids"].tolist()


def test_what_is_finished_is_not_sampled_again(tmp_path: Path) -> None:
    expected = sample(tmp_path / "whole", Sampler())
    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path / "killed", Sampler(dies_at=2))
    again = Sampler()
    pd.testing.assert_frame_equal(sample(tmp_path / "killed", again), expected)
    assert again.asked == [["c", "a"], ["d"]]
    assert again.names == ["prompts 3 to 4 of 5", "prompts 5 to 5 of 5"]


def test_processes_sample_as_many_parts_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = sample(tmp_path / "one", Sampler())
    monkeypatch.setattr(parts, "process", lambda: SimpleNamespace(num_processes=2))
    sampler = Sampler()
    pd.testing.assert_frame_equal(sample(tmp_path / "two", sampler), expected)
    assert sampler.asked == [["b", "e", "c", "a"], ["d"]]
