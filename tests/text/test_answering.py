"""The table of answers is made of tables of several models, and answers to other prompts are refused."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from answer_settings import answer_settings

from prefdag.lifecycle.errors import DataError
from prefdag.text.generation.answering import joined, read_answers, write_answers

PROMPTS = pd.DataFrame({"id": ["b", "a"], "prompt_ids": [[1, 2], [3]]})
CONFIG = answer_settings()


def answers(*models: str) -> pd.DataFrame:
    """Two decodings of each model."""
    parts = [PROMPTS.assign(decoding=decoding, model=model) for model in models for decoding in ("greedy", "sampled")]
    return pd.concat(parts, ignore_index=True)


def test_answers_are_by_decoding_then_model_then_prompt() -> None:
    table = joined([answers("reference", "control"), answers("policy")])
    expected = [
        (decoding, model, name)
        for decoding in ("greedy", "sampled")
        for model in ("reference", "policy", "control")
        for name in ("b", "a")
    ]
    assert [*table[["decoding", "model", "id"]].itertuples(index=False, name=None)] == expected
    assert list(table.index) == list(range(12))


@pytest.mark.slow
@pytest.mark.parametrize(
    "prompts",
    [
        PROMPTS[::-1],
        PROMPTS[:1],
        PROMPTS.assign(id=["b", "c"]),
        PROMPTS.assign(prompt_ids=[[1, 2], [4]]),
    ],
)
def test_answers_to_other_prompts_are_refused(prompts: pd.DataFrame, tmp_path: Path) -> None:
    write_answers(tmp_path, answers("reference"), CONFIG)
    assert len(read_answers(tmp_path, PROMPTS, CONFIG)) == 4
    with pytest.raises(DataError, match=r"answers.parquet: answers to other prompts .*; run ref_answers again$"):
        read_answers(tmp_path, prompts, CONFIG)


def test_answers_with_other_settings_are_refused(tmp_path: Path) -> None:
    """As when `dvc repro --single-item answer_text` runs with another seed."""
    write_answers(tmp_path, answers("reference"), CONFIG)
    with pytest.raises(DataError, match=r"key.json: seed is 0, answer_text.seed is 1; run ref_answers again$"):
        read_answers(tmp_path, PROMPTS, replace(CONFIG, seed=1))
    assert len(read_answers(tmp_path, PROMPTS, replace(CONFIG, batch_size=9))) == 4
