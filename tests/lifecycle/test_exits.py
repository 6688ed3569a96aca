"""What a failed stage adds to its error when it runs under DVC."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from prefdag.lifecycle.errors import DataError, ParamsError
from prefdag.lifecycle.exits import one_line_errors

WRONG = ParamsError("params.yaml: beta: input should be greater than 0, not -1")
HINT = "`git diff params.yaml` shows them, `git restore params.yaml` undoes all that is not committed\n"


@pytest.fixture
def edited(own_git: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository whose params.yaml differs from the committed one, and the environment of a stage under DVC."""
    Path("params.yaml").write_text("beta: 0.1\n")
    for command in (["git", "init", "-q"], ["git", "add", "."], ["git", "commit", "-q", "-m", "first"]):
        subprocess.run(command, check=True)
    Path("params.yaml").write_text("beta: -1\n")
    monkeypatch.setenv("DVC_ROOT", str(Path.cwd()))


def line(error: Exception, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit), one_line_errors("stage"):
        raise error
    return capsys.readouterr().err


def test_a_value_left_by_an_experiment(edited: None, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert line(WRONG, capsys) == f"error: {WRONG}; params.yaml has edits: {HINT}"
    monkeypatch.setenv("DVC_EXP_NAME", "some-name")
    assert line(WRONG, capsys) == f"error: {WRONG}; `dvc exp run` leaves its values in params.yaml: {HINT}"


def test_nothing_is_added_elsewhere(edited: None, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors about other files, the folder of a queued experiment, a committed file, a stage without DVC."""
    assert line(DataError("rows.jsonl: row 3"), capsys) == "error: rows.jsonl: row 3\n"
    monkeypatch.setenv("DVC_ROOT", str(Path.cwd().parent))
    assert line(WRONG, capsys) == f"error: {WRONG}\n"
    monkeypatch.setenv("DVC_ROOT", str(Path.cwd()))
    subprocess.run(["git", "restore", "params.yaml"], check=True)
    assert line(WRONG, capsys) == f"error: {WRONG}\n"
    monkeypatch.delenv("DVC_ROOT")
    Path("params.yaml").write_text("beta: -1\n")
    assert line(WRONG, capsys) == f"error: {WRONG}\n"


@pytest.mark.slow
def test_dvc_leaves_the_value_and_the_advice_restores_it(own_git: None) -> None:
    """With DVC itself, and a stage that ends as ours do."""
    Path("params.yaml").write_text("beta: 0.1\n")
    Path("check.py").write_text(
        "from prefdag.lifecycle.errors import ParamsError\n"
        "from prefdag.lifecycle.exits import one_line_errors\n"
        "with one_line_errors('check'):\n"
        "    if '-1' in open('params.yaml').read():\n"
        "        raise ParamsError('params.yaml: beta: wrong')\n"
        "    open('out.txt', 'w').close()\n"
    )
    stage = "stages: {check: {cmd: python check.py, params: [beta], outs: [out.txt]}}\n"
    Path("dvc.yaml").write_text(stage)
    for command in ("git init -q", "dvc init -q", "dvc repro -q", "git add .", "git commit -q -m first"):
        subprocess.run(command.split(), check=True)
    failed = subprocess.run(["dvc", "exp", "run", "-S", "beta=-1"], capture_output=True, text=True, check=False)
    assert failed.returncode != 0
    assert f"error: params.yaml: beta: wrong; `dvc exp run` leaves its values in params.yaml: {HINT}" in failed.stderr
    assert Path("params.yaml").read_text() == "beta: -1\n"
    subprocess.run(["git", "restore", "params.yaml"], check=True)
    assert Path("params.yaml").read_text() == "beta: 0.1\n"
