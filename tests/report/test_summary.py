"""The five lines that `make repro` ends with, and the small file of metrics."""

import json
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from report_inputs import write_inputs
from typer.testing import CliRunner

from prefdag.cli import app
from prefdag.report.page.summary import lines, main_metrics
from prefdag.runtime.dvc_files import read_dag

ENDS = ("", "_low", "_high")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("summary")
    write_inputs(path)
    return path


@pytest.fixture
def metrics(folder: Path) -> dict[str, Any]:
    """The files of metrics, which a test may change."""
    paths = {"text": "text/metrics.json", "image": "image/metrics.json", "win_rate": "text/win_rate.json"}
    return {name: json.loads((folder / "reports" / path).read_text("utf-8")) for name, path in paths.items()}


@pytest.mark.slow
def test_the_command_prints_five_lines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(app, ["summary"])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "Text, pairs ranked right  50% before DPO (chance), 67.5% after (95% interval 53.5–81.5%, n = 40): better than chance",
        "Text, answers             better than the reference’s in 100.0% of 1 (95% interval 60.3–100.0%), judged by the "
        "policy’s own implicit reward, which favours the policy: the judge prefers the policy’s answers",
        "Text, KL and perplexity   0.0312 nats per token from the reference; perplexity 10.49 before DPO, 9.97 after: lower",
        "Images, accuracy          95.0% before DPO, 95.7% after (95% interval 93.7–97.7%, n = 300); difference +0.7 points: "
        "no significant difference",
        "Report                    reports/index.html (opens offline)",
    ]


def test_make_repro_ends_with_them() -> None:
    recipe = (ROOT / "Makefile").read_text("utf-8").partition("\nrepro:")[2].partition("\n\n")[0]
    assert recipe.splitlines()[-1].endswith("prefdag summary")


def test_a_run_that_has_not_finished_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["summary"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "error: reports/text/metrics.json: not found; `dvc repro` makes it\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.51, 0.7, ": better than chance"),
        (0.5, 0.7, ": not significantly better than chance"),
        (0.3, 0.49, ": worse than chance"),
    ],
)
def test_a_ranking_is_called_what_its_interval_allows(
    metrics: dict[str, Any], low: float, high: float, words: str
) -> None:
    metrics["text"]["heldout"]["rewards"] |= {"accuracy_low": low, "accuracy_high": high}
    assert lines(**metrics, report="x")[0].endswith(words)


def test_scores_and_the_control_stand_in_the_line_on_answers(metrics: dict[str, Any]) -> None:
    def rates(policy: float, other: float, rate: float) -> dict[str, float]:
        scores = {f"score_{name}{end}": value for name, value in (("policy", policy), ("other", other)) for end in ENDS}
        counts = {"n": 150, "wins": 40, "ties": 90, "losses": 20, "unread": 0}
        return counts | scores | {"win_rate": rate, "win_rate_low": rate - 0.05, "win_rate_high": rate + 0.05}

    against = {"greedy": rates(0.6, 0.45, 0.575), "sampled": rates(0.5, 0.4, 0.55)}
    metrics["win_rate"] = {"verify": against | {"control": {name: rates(0.6, 0.48, 0.56) for name in against}}}
    assert lines(**metrics, report="x")[1] == (
        "Text, answers             score 45.0% before DPO, 60.0% after (95% interval 60.0–60.0%), 48.0% after as much "
        "cross-entropy; better than the reference’s in 57.5% of 150 (95% interval 52.5–62.5%), judged by a program that checks "
        "each answer: the judge prefers the policy’s answers"
    )
    del metrics["win_rate"]["verify"]["control"]
    assert "cross-entropy" not in lines(**metrics, report="x")[1]


def test_unpaired_responses_are_no_pairs(metrics: dict[str, Any]) -> None:
    heldout = metrics["text"]["heldout"]
    del heldout["n_pairs"]
    heldout |= {"n_chosen": 30, "n_rejected": 20}
    first, *_ = lines(**metrics, report="x")
    assert first.startswith("Text, responses ranked right  50% before")
    assert "n = 30 and 20" in first
    names = set(main_metrics(metrics["text"], metrics["win_rate"], metrics["image"], {"text": 0, "image": 0})["text"])
    assert {"rewards/auc", "rewards/auc_low"} <= names
    assert "rewards/accuracies" not in names, "an area under a curve is no accuracy"


def test_dvc_reads_one_small_file_of_metrics_and_caches_the_others() -> None:
    stages = read_dag(ROOT / "dvc.yaml")
    assert {name: entry["metrics"] for name, entry in stages.items() if "metrics" in entry} == {
        "report": [{"reports/metrics.json": {"cache": False}}]
    }
    uncached = [str(out) for entry in stages.values() for out in entry.get("outs", []) if not isinstance(out, str)]
    assert uncached == ["{'reports/published.txt': {'cache': False, 'persist': True}}"]
