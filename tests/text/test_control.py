"""The control of the text track: cross-entropy from the reference with the budget of DPO, and what it is compared in."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from judging import contests_of
from tasks import without_tracking
from text_project import dpo_settings, write_text_project

from prefdag.config.control_text import ControlText
from prefdag.pairs.turns import Asked
from prefdag.runtime.artifacts import sha256
from prefdag.stats.intervals import proportion
from prefdag.stats.rewards import by_length
from prefdag.text import model as lm
from prefdag.text.evaluation import judge
from prefdag.text.generation import answers
from prefdag.text.scoring import rows
from prefdag.text.scoring.logps import group_logps
from stages import control_text, dpo_text


@pytest.fixture
def histories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A project with a tiny model in the working directory; the history of each training."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    write_text_project(tmp_path, "llama")
    return without_tracking(monkeypatch, tmp_path / "checkpoints")


def train(peak: float = 1e-2, **changes: Any) -> str:
    control_text.main(0, dpo_settings(**changes), ControlText(train=True, learning_rate=peak))
    return sha256(control_text.CONTROL)


@pytest.mark.slow
@pytest.mark.usefixtures("histories")
def test_the_control_learns_the_chosen_responses() -> None:
    train()
    models = lm.load_models(control_text.REFERENCE, control_text.CONTROL)
    groups = rows.chosen_groups(rows.read_split(control_text.PAIRS, "train"))
    before, after = (float(np.sum(group_logps(model, groups, 1000, "train"))) for model in models)
    assert after > before + 1.0


@pytest.mark.slow
@pytest.mark.usefixtures("histories", "one_thread")
def test_the_control_never_sees_the_rejected_responses() -> None:
    first = train()
    path = dpo_text.PAIRS / "train.parquet"
    table = pd.read_parquet(path)
    table["rejected_ids"] = [np.array([1, 2, 0])] * len(table)
    table.to_parquet(path)
    assert train() == first


@pytest.mark.slow
def test_it_has_the_budget_of_dpo_and_a_learning_rate_of_its_own(histories: list[Any]) -> None:
    train(2e-3, epochs=2, learning_rate=1e-4, warmup_fraction=0.0)
    ((history, _),) = histories
    rates = [row["learning_rate"] for row in history.train]
    steps = dpo_settings(epochs=2).training
    assert len(rates) == 2 * 8 // steps.batch_size
    assert rates[0] == pytest.approx(2e-3)


@pytest.mark.usefixtures("histories")
def test_without_a_control_nothing_is_trained() -> None:
    control_text.main(0, dpo_settings(), ControlText(train=False, learning_rate=1e-3))
    assert [path.name for path in control_text.CONTROL.iterdir()] == ["off"]


def answers_of(**texts: list[str]) -> pd.DataFrame:
    """Greedy answers to the prompts p0, p1, ... by model."""
    n = len(next(iter(texts.values())))
    prompts = pd.DataFrame({"id": [f"p{i}" for i in range(n)], "prompt_ids": [[5]] * n, "decoding": "greedy"})
    each = [answers.rows(prompts.assign(model=model), side, [[7, 0]] * n, (0,)) for model, side in texts.items()]
    return pd.concat(each, ignore_index=True)


def test_the_policy_meets_every_other_model() -> None:
    asked = {key: Asked([{"role": "user", "content": key}], None) for key in ("p0", "p1")}
    table = answers_of(reference=["a", "b"], policy=["c", "d"], control=["e", "f"])
    met = judge.against_each(table, asked)
    assert met[["against", "id", "text_reference", "text_policy"]].to_numpy().tolist() == [
        ["reference", "p0", "a", "c"],
        ["reference", "p1", "b", "d"],
        ["control", "p0", "e", "c"],
        ["control", "p1", "f", "d"],
    ]
    alone = judge.against_each(table[table["model"] != "control"], asked)
    pd.testing.assert_frame_equal(alone, met[:2])


def test_statistics_have_the_control_if_there_is_one() -> None:
    table = answers_of(reference=["a", "b"], policy=["c", "d"], control=["I cannot", "f"])
    assert answers.statistics(table)["greedy"]["control"]["refused"] == 0.5
    assert "control" not in answers.statistics(table[table["model"] != "control"])["greedy"]


def test_scores_of_a_program_by_hand() -> None:
    """Of four answers, the policy's pass 3 checks and the reference's 1; a prompt without a verdict does not count."""
    pairs = contests_of([("a", "b")] * 5)
    verdicts = judge.by_rewards(pairs, np.array([1, 0, 0, 0, np.nan]), np.array([1, 1, 1, 0, np.nan]))
    assert "score_policy" not in judge.win_rates(pairs, verdicts)["greedy"], "rewards on any scale have no mean score"
    rates = judge.win_rates(pairs, verdicts.assign(reason_policy="", reason_reference=""))["greedy"]
    assert [rates[name] for name in ("score_policy", "score_other")] == [3 / 4, 1 / 4]
    assert (rates["score_policy_low"], rates["score_policy_high"]) == proportion(3, 4)


def test_a_ranker_by_length_by_hand() -> None:
    """Longer and preferred, shorter and preferred, equal, longer with a soft label: 1, 0, 1/2, 0.7."""
    found = by_length(torch.tensor([1.0, 1.0, 1.0, 0.7]), torch.tensor([3, -2, 0, 1]))
    assert found["by_length"] == pytest.approx((1 + 0 + 0.5 + 0.7) / 4)
    assert found["by_length_low"] < found["by_length"] < found["by_length_high"]
