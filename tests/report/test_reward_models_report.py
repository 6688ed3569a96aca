"""The reward models in report and metrics."""

from pathlib import Path

import pytest
import torch
from report_inputs import Page, write_inputs

from prefdag.check_params import load_params
from prefdag.report.page import reward_models
from prefdag.runtime.artifacts import read_json, write_json
from prefdag.stats.reward_model import figures
from stages import report


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.slow
def test_the_report_shows_the_reward_models_that_there_are(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    params = load_params(root / "params.yaml")
    report.main(params)
    without = report.PAGE.read_text("utf-8")
    assert "Reward model" not in Page(without).text
    assert not any("reward_model" in key for track in read_json(report.MAIN_METRICS).values() for key in track)
    tokens = (torch.tensor([5, 2, 3, 4]), torch.tensor([2, 5, 5, 4]))
    write_json(report.TEXT_REWARDS, figures(tensor(2, 0, 1, 0), tensor(0, 1, 0, 0), tensor(1, 1, 1, 1), tokens))
    write_json(
        report.IMAGE_REWARDS, figures(torch.ones(30).double(), torch.zeros(30).double(), torch.ones(30).double())
    )
    report.main(params)
    page = Page(report.PAGE.read_text("utf-8"))
    assert page.open == []
    for line in (
        "It is not shown to beat chance , so it does not judge.",
        "Pairs ranked right 50.0% 15.0–85.0% 4",
        "– whose preferred response is longer 100.0%",
        "Control: the longer response, or a guess 37.5%",
        "It judges nothing.",
        "Pairs ranked right 100.0% 88.6–100.0% 30",
    ):
        assert line in page.text
    metrics = read_json(report.MAIN_METRICS)
    assert metrics["text"]["reward_model_accuracy"] == 0.5
    assert metrics["image"]["reward_model_accuracy"] == 1.0
    assert {"reward-model.svg", "image-reward-model.svg"} <= {path.name for path in report.FIGURES.iterdir()}


def test_without_a_reward_model_there_is_nothing_to_show() -> None:
    assert reward_models.view(None, "reward-model") is None
