"""`prefdag experiments`: what `dvc exp show` has, with few columns."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prefdag.cli import app
from prefdag.project.experiments import MOST, columns

FIXED = {"Experiment": "", "rev": "workspace", "typ": "baseline", "Created": "", "parent": ""}


def test_main_columns_stay_and_others_only_if_they_differ() -> None:
    rows = [
        FIXED | {"text.kl": "0.1", "image.kl": "1", "beta": "0.1", "loss": "ipo", "seed": "0", "same": "1", "other": other}
        | {"models/dpo_text": hashed, "models/new": hashed if other else ""}
        for other, hashed in (("1", "a" * 32), ("", "b" * 32 + ".dir"))
    ]  # fmt: skip
    assert columns(rows) == ([*FIXED, "text.kl", "image.kl", "beta", "loss", "seed", "other"], 0)
    assert columns([]) == (["Experiment", "rev", "typ", "Created", "parent", "State", "Executor"], 0)


def test_there_are_never_more_than_forty() -> None:
    rows = [FIXED | {"beta": "1"} | {f"p{i}": str(i * k) for i in range(1, 101)} for k in (1, 2)]
    kept, left_out = columns(rows)
    assert len(kept) == MOST
    assert left_out == 100 - (MOST - 6)
    assert kept[6:8] == ["p1", "p2"]


@pytest.mark.slow
@pytest.mark.usefixtures("own_git")
def test_the_table_of_a_project(root: Path) -> None:
    """All parameters of this project, and about as many dependencies; two revisions that differ in a few parameters."""

    def run(*command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    dvc = (sys.executable, "-m", "dvc")
    deps = [f"dep{i}" for i in range(150)]
    for dep in deps:
        Path(dep).write_text(dep)
    Path("reports").mkdir(exist_ok=True)
    metrics = {"text": {f"m{i}": i for i in range(8)}, "image": {"accuracy": 0.9}}
    Path("made.json").write_text(json.dumps(metrics))
    Path("params.yaml").write_text((root / "params.yaml").read_text("utf-8"))
    stage = {
        "cmd": "cp made.json reports/metrics.json",
        "deps": deps,
        "metrics": [{"reports/metrics.json": {"cache": False}}],
    }
    Path("dvc.yaml").write_text(json.dumps({"stages": {"report": stage}}))
    Path(".gitignore").write_text(".site\n")
    run("git", "init", "--quiet")
    run(*dvc, "init", "--quiet")
    run(*dvc, "repro", "--quiet")
    run("git", "add", "--all")
    run("git", "commit", "--quiet", "--message", "a")
    text = Path("params.yaml").read_text("utf-8")
    Path("params.yaml").write_text(text.replace("epochs: 1", "epochs: 2").replace("beta: 0.1", "beta: 0.3"))

    all_of_them = csv.DictReader(io.StringIO(run(*dvc, "exp", "show", "--csv"))).fieldnames or ()
    assert len(all_of_them) > 300, "otherwise there is nothing to bound"
    shown = run(sys.executable, "-c", "from prefdag.cli import app; app()", "experiments", "--csv")
    rows = list(csv.DictReader(io.StringIO(shown)))
    assert len(rows[0]) <= MOST
    assert {row["beta"] for row in rows} == {"0.1", "0.3"}
    assert {"text.m7", "image.accuracy", "dpo_text.training.epochs", "loss", "seed"} <= set(rows[0])
    assert "label_pairs.seed" not in rows[0]
    assert run(*dvc, "metrics", "diff", "--all", "HEAD").count("reports/metrics.json") == 9


@pytest.mark.slow
def test_a_folder_without_dvc_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["experiments"])
    assert done.exit_code == 1
    assert done.stderr == "error: `dvc exp show` failed; its message is above\n"
