"""What a failed stage adds to its error when it runs under DVC."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from prefdag.lifecycle.errors import DataError, ParamsError
from prefdag.lifecycle.exits import BUG, LIGHTER, as_stages_write, one_line_errors
from prefdag.runtime.dvc_files import read_dag, script
from prefdag.runtime.yaml import flatten, read_yaml

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


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (PermissionError(13, "Permission denied", "reports"), 2, "error: reports: Permission denied\n"),
        (OSError(30, "Read-only file system", "export"), 2, "error: export: Read-only file system\n"),
        (OSError(27, "File too large"), 1, "error: stage: File too large\n"),
        (OSError(28, "No space left on device", b"a"), 1, "error: a: No space left on device\n"),
        (OSError("Error writing bytes. Detail: [errno 27] File too large"), 1, "error: stage: File too large\n"),
        (MemoryError(), 1, "error: stage: not enough memory\n"),
        (sqlite3.OperationalError("disk I/O error"), 1, "error: stage: disk I/O error\n"),
    ],
)
def test_what_the_machine_or_a_path_refuses_is_one_line(
    error: Exception, code: int, expected: str, capsys: Any
) -> None:
    with pytest.raises(SystemExit) as caught, one_line_errors("stage"):
        raise error
    assert (caught.value.code, capsys.readouterr().err) == (code, expected)


def test_too_little_memory_says_what_to_change(capsys: Any) -> None:
    """Of torch on a CPU for real; on a GPU, the error that it raises there."""
    import torch

    with pytest.raises(RuntimeError) as on_cpu:
        torch.empty(2**60, dtype=torch.uint8)
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), on_cpu.value):
        for stage, remedy in LIGHTER.items():
            with pytest.raises(SystemExit) as caught, one_line_errors(stage):
                raise error
            assert (caught.value.code, capsys.readouterr().err) == (
                1,
                f"error: {stage}: not enough memory; params.yaml: {remedy}\n",
            )


def test_what_makes_a_stage_lighter_exists() -> None:
    stages, params = set(map(script, read_dag(ROOT / "dvc.yaml"))), flatten(read_yaml(ROOT / "params.yaml"))
    assert LIGHTER.keys() <= stages
    for remedy in LIGHTER.values():
        keys = re.findall(r"\w+\.[\w.]+", remedy)
        assert keys
        assert set(keys) <= params.keys()


def test_a_repository_of_another_user_has_a_remedy(capsys: Any) -> None:
    """As libgit2 says it: of a clone that is mounted into a container, say."""
    from dvc.exceptions import DvcException

    error = DvcException("/mine/.git/: repository path '/mine/' is not owned by current user")
    remedy = "; if you trust it: `git config --global --add safe.directory /mine`\n"
    assert line(error, capsys) == f"error: stage: {error}{remedy}"


def test_a_bug_keeps_its_traceback_and_says_what_it_is() -> None:
    with pytest.raises(KeyError) as caught, one_line_errors("outer"), one_line_errors("inner"):
        raise KeyError("x")
    assert caught.value.__notes__ == [BUG]


def prefdag(*arguments: str, shell: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The command in a shell of its own, as `"$@"`."""
    command = [sys.executable, "-c", "from prefdag.cli import app; app()", *arguments]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(["bash", "-c", shell, "bash", *command], env=variables, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("shell", "code", "line"),
    [
        ('"$@" | true; exit ${PIPESTATUS[0]}', None, ""),
        ('"$@" >&-', 0, ""),
        ('"$@" > /dev/full', 1, "error: prefdag: No space left on device\n"),
    ],
)
def test_a_stdout_that_is_closed_or_full(shell: str, code: int | None, line: str) -> None:
    done = prefdag("--version", shell=shell)
    assert "Traceback" not in done.stderr
    assert done.stderr == line
    assert code is None or done.returncode == code


def test_a_path_with_accents_in_a_locale_without_them(tmp_path: Path) -> None:
    folder = tmp_path / "é ü"
    folder.mkdir()
    (folder / "é.yaml").write_text("betta: 1\n")
    shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
    shell = f'cd "{folder}"; git init -q; git add params.yaml; git -c user.name=a -c user.email=a@b commit -qm a; "$@"'
    done = prefdag("profile", "é.yaml", shell=shell, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert ".yaml: betta: unknown key; did you mean 'beta'?" in done.stderr


@pytest.mark.parametrize(("module", "slow"), [("prefdag", "typer"), ("stages.dpo_text", "pydantic")])
def test_ctrl_c_while_modules_are_imported(module: str, slow: str, tmp_path: Path) -> None:
    """The imported library interrupts its own process, also where the tests run in the background, without SIGINT."""
    lines = ("import os, signal", "signal.signal(2, signal.default_int_handler)", "os.kill(os.getpid(), 2)")
    (tmp_path / f"{slow}.py").write_text("\n".join(lines))
    variables = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-m", module], env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted; run it again\n")


def test_results_of_another_shape_are_named(capsys: Any) -> None:
    with pytest.raises(SystemExit), one_line_errors("prefdag"), as_stages_write("a.json"):
        print({}["kl"])
    assert capsys.readouterr().err == (
        "error: a.json: not as this version of prefdag writes it (no 'kl'); restore it, or `dvc repro` makes it again\n"
    )
    with pytest.raises(DataError, match=r"^rows\.jsonl: row 3"), as_stages_write("a.json"):
        raise DataError("rows.jsonl: row 3")
