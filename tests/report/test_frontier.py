"""The frontier: DVC and MLflow give the same points, and the page shows them."""

import json
import re
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


def flat(beta: float) -> dict[str, float]:
    return {key.replace(".", "/"): value for key, value in flatten(metrics(beta)).items()}


def experiment(name: str, beta: float, **others: Any) -> tuple[str, Mapping[str, Any], Mapping[str, Any]]:
    return name, {"beta": beta, "loss": "sigmoid"} | others, flat(beta)


def test_experiments_with_equal_metrics_are_one_point() -> None:
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
        ]
    )
    assert table["name"].tolist() == ["workspace", "two"]
    assert table["text/heldout/rewards/margin"].tolist() == pytest.approx([0.1 + 0.1, 0.1 + 0.3])  # 0.1 + beta
    assert list(table) == ["name", "beta", "loss", *frontier.KEYS]
    with pytest.raises(DataError, match=r"^no finished experiment found; `make sweep"):
        frontier.points([])


def test_the_page_names_every_experiment_with_its_intervals() -> None:
    html = frontier.render(frontier.points([experiment("<b>one</b>", 0.1), experiment("two", 0.4, loss="ipo")]))
    assert html.count("<svg") == 3
    assert "&lt;b&gt;one&lt;/b&gt; <small>sigmoid</small>" in html
    # KL 0.02 / beta: 0.02 / 0.4 and 0.02 / 0.1; accuracy 0.7 - beta / 4: 0.7 - 0.4 / 4 and 0.7 - 0.1 / 4.
    assert "2 experiments by KL: beta 0.4: KL 0.05, 60.0%; beta 0.1: KL 0.2, 67.5%." in html
    assert "67.5% <small>57.5–77.5%</small>" in html  # 67.5 - 10 and 67.5 + 10
    assert "+0.500 <small>+0.400 to +0.600</small>" in html  # margin 0.1 + beta, 0.5 - 0.1 and 0.5 + 0.1
    assert not re.search("https?:", html.replace("http://www.w3.org", ""))


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
for track, values in tree.items():
    Path("reports", track).mkdir(parents=True, exist_ok=True)
    Path("reports", track, "metrics.json").write_text(json.dumps(values))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("own_git")
def test_dvc_has_the_points_of_a_sweep() -> None:
    """A repository whose one stage writes metrics: its commit, a sweep of two more betas, and a fourth that is only queued."""

    def run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)

    dvc = (sys.executable, "-m", "dvc")
    Path("write.py").write_text(WRITE.format(helpers=str(HELPERS)))
    Path("params.yaml").write_text("beta: 0.1\nloss: sigmoid\n")
    outs = [{path: {"cache": False}} for path in frontier.METRICS.values()]
    stage = {"cmd": f"{sys.executable} write.py", "params": ["beta"], "metrics": outs}
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
