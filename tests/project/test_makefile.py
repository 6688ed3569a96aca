"""What `make` says before it does anything: without Git, and in a path in which DVC cannot queue experiments."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from paths import ROOT


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`make` in a folder where everything seems to be installed."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / "Makefile", folder / "Makefile")
    (folder / ".venv/bin").mkdir(parents=True, exist_ok=True)
    made = ("requirements-uv.lock", "requirements.lock", "pyproject.toml", ".venv/.uv", ".venv/.installed")
    for moment, name in enumerate(made, 10**9):  # each newer than what it is made from
        (folder / name).touch()
        os.utime(folder / name, (moment, moment))
    (folder / ".venv/bin/activate").touch()
    # `make test` tells its children that they run inside a make.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment["GIT_CEILING_DIRECTORIES"] = str(folder.parent)
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("target", ["repro", "sweep"])
def test_a_zip_of_the_repository_says_how_to_start_one(target: str, tmp_path: Path) -> None:
    done = make(tmp_path / "zip", target)
    assert done.returncode != 0
    assert done.stdout == (
        "This folder is not a Git repository, which DVC needs: git init && git add -A && git commit -m Start\n"
    )


def test_a_path_in_which_dvc_cannot_queue(tmp_path: Path) -> None:
    folder = tmp_path / "a sp ä"
    note = "DVC cannot queue experiments in a path with letters beyond ASCII"
    assert make(folder, "setup").stdout.startswith(f"note: {note}")
    subprocess.run(["git", "init", "-q", folder], check=True)
    done = make(folder, "sweep")
    assert done.returncode != 0
    assert done.stdout.splitlines()[-1].startswith(note)
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config.local").write_text("[cache]\n    dir = /tmp/cache\n")  # what the note advises
    assert make(folder, "setup").stdout == ""


def test_any_other_path_needs_no_note(tmp_path: Path) -> None:
    assert make(tmp_path / "a space", "setup").stdout == ""
