"""The frontier: DVC and MLflow give the same points, and the page shows them."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from frontier_metrics import metrics
from paths import HELPERS
from typer.testing import CliRunner

from prefdag.cli import app
from prefdag.lifecycle.errors import DataError
from prefdag.report.compare import frontier
from prefdag.runtime.yaml import flatten

WIN_RATE = "win_rate/{}/greedy/win_rate"


def flat(beta: float, judge: str = "implicit") -> dict[str, float]:
    return {key.replace(".", "/"): value for key, value in flatten(metrics(beta, judge)).items()}


def experiment(
    name: str, beta: float, judge: str = "implicit", **others: Any
) -> tuple[str, Mapping[str, Any], Mapping[str, Any]]:
    return name, {"beta": beta, "loss": "sigmoid"} | others, flat(beta, judge)


def test_experiments_with_equal_metrics_are_one_point(caplog: pytest.LogCaptureFixture) -> None:
    table = frontier.points(
        [
            experiment("workspace", 0.1),
            experiment("one", 0.1),
            (
                "rounded",
                {"beta": 0.1, "loss": "sigmoid"},
                {key: value * (1 + 1e-9) for key, value in flat(0.1).items()},
            ),
            experiment("two", 0.3),
            ("failed", {"beta": 1}, {"a": 1.0}),
            ("older", {"loss": "sigmoid"}, flat(0.1)),
        ]
    )
    assert caplog.messages == ["failed: left out: it has no text/heldout/kl", "older: left out: it has no beta"]
    assert table["name"].tolist() == ["workspace", "two"]
    assert table["text/heldout/rewards/margin"].tolist() == pytest.approx([0.1 + 0.1, 0.1 + 0.3])  # 0.1 + beta
    win_rate = [f"{WIN_RATE.format('implicit')}{end}" for end in ("", "_low", "_high")]
    assert list(table) == ["name", "beta", "loss", *frontier.KEYS, *win_rate]
    with pytest.raises(DataError, match=r"^no finished experiment found; `make sweep"):
        frontier.points([])


@pytest.mark.slow
def test_the_page_names_every_experiment_with_its_intervals() -> None:
    html = frontier.render(frontier.points([experiment("<b>one</b>", 0.1), experiment("two", 0.4, loss="ipo")]))
    assert html.count("<svg") == 3
    assert "&lt;b&gt;one&lt;/b&gt; <small>sigmoid</small>" in html
    # KL 0.02 / beta: 0.02 / 0.4 and 0.02 / 0.1; accuracy 0.7 - beta / 4: 0.7 - 0.4 / 4 and 0.7 - 0.1 / 4.
    assert "2 experiments by KL: beta 0.4: KL 0.05, 60.0%; beta 0.1: KL 0.2, 67.5%." in html
    assert "67.5% <small>57.5–77.5%</small>" in html
    assert "60.0% <small>50.0–70.0%</small>" in html
    assert "2 experiments by KL: beta 0.4: KL 0.05, 60.0%; beta 0.1: KL 0.2, 75.0%." in html
    assert not re.search("https?:", html.replace("http://www.w3.org", ""))


@pytest.mark.slow
def test_no_axis_has_rewards() -> None:
    """Rewards of different betas are on different scales; only rates are drawn or listed on the page."""
    table = frontier.points([experiment("one", 0.1), experiment("two", 0.4)])
    drawn = [key for _, measures in frontier.tracks(table).values() for key in measures.values()]
    assert drawn == ["text/heldout/rewards/accuracy", WIN_RATE.format("implicit"), "image/policy/accuracy"]
    assert "margin" not in re.sub(r"<style>.*?</style>", "", frontier.render(table), flags=re.DOTALL)


@pytest.mark.slow
def test_win_rates_of_different_judges_are_never_joined() -> None:
    table = frontier.points([experiment("one", 0.1), experiment("two", 0.4, "reward_model"), experiment("three", 0.2)])
    titles = {figure["title"]: str(figure["svg"]) for figure in frontier.figures(table)}
    assert len(titles) == 4
    implicit = titles["Language model: win rate (implicit judge) against KL, nats per token"]
    assert "2 experiments by KL: beta 0.2: KL 0.1, 70.0%; beta 0.1: KL 0.2, 75.0%." in implicit
    other = titles["Language model: win rate (reward model judge) against KL, nats per token"]
    assert "1 experiment by KL: beta 0.4: KL 0.05, 60.0%." in other
    assert frontier.render(table).count("<td>–</td>") == 3


def test_runs_without_a_win_rate_are_points_too() -> None:
    name, params, values = experiment("old", 0.1)
    old = {key: value for key, value in values.items() if not key.startswith("win_rate/")}
    table = frontier.points([(name, params, old)])
    assert list(table) == ["name", "beta", "loss", *frontier.KEYS]
    assert frontier.render(table).count("<svg") == 2


@pytest.mark.slow
def test_mlflow_has_the_points_of_finished_pipeline_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    for beta, kind, status in (
        (0.3, "pipeline", "FINISHED"),
        (0.1, "pipeline", "FINISHED"),
        (0.2, "pipeline", "KILLED"),
        (0.5, "stage", "FINISHED"),
    ):
        run = mlflow.start_run(run_name=f"beta={beta}", tags={"kind": kind})
        mlflow.log_params({"beta": beta, "loss": "sigmoid"})
        mlflow.log_metrics(flat(beta))
        mlflow.end_run(status)
        assert run
    done = CliRunner().invoke(app, ["frontier", "--from", "mlflow"])
    assert (done.exit_code, done.stdout) == (0, "2 experiments: reports/frontier.html, reports/frontier.csv\n")
    written = pd.read_csv("reports/frontier.csv")
    expected = frontier.points([experiment("beta=0.3", 0.3), experiment("beta=0.1", 0.1)])
    pd.testing.assert_frame_equal(written, expected)


WRITE = """
import json, sys
sys.path.insert(0, {helpers!r})
from pathlib import Path
from ruamel.yaml import YAML
from frontier_metrics import metrics
tree = metrics(YAML(typ="safe").load(Path("params.yaml"))["beta"])
for track, path in {paths!r}.items():
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(tree[track]))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("own_git")
@pytest.mark.parametrize("cached", [True, False])
def test_dvc_has_the_points_of_a_sweep(cached: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A repository whose one stage writes metrics, a sweep of two betas beside the committed one, and a queued third."""

    def run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)

    dvc = (sys.executable, "-m", "dvc")
    Path("write.py").write_text(WRITE.format(helpers=str(HELPERS), paths=frontier.METRICS))
    Path("params.yaml").write_text("beta: 0.1\nloss: sigmoid\n")
    outs = [{path: {"cache": cached}} for path in frontier.METRICS.values()]
    stage = {"cmd": f"{sys.executable} write.py", "params": ["beta"], "outs": outs}
    Path("dvc.yaml").write_text(json.dumps({"stages": {"write": stage}}))
    Path(".gitignore").write_text(".site\n")
    run("git", "init", "--quiet")
    run(*dvc, "init", "--quiet")
    run(*dvc, "repro", "--quiet")
    run("git", "add", "--all")
    run("git", "commit", "--quiet", "--message", "a")
    run(*dvc, "exp", "run", "--queue", "-S", "beta=0.3,0.5")
    run(*dvc, "exp", "run", "--run-all")
    run(*dvc, "exp", "run", "--queue", "-S", "beta=0.7")
    table = frontier.from_dvc()
    assert sorted(table["beta"]) == [0.1, 0.3, 0.5]
    expected = frontier.points([experiment(row.name, row.beta) for row in table.itertuples(index=False)])
    pd.testing.assert_frame_equal(table, expected)
    if cached:  # lost: the experiments are named, and the workspace is left
        shutil.rmtree(".dvc/cache")
        assert frontier.from_dvc()["name"].tolist() == ["workspace"]
        left_out = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
        assert len(left_out) == 3
