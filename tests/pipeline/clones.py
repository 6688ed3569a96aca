"""Clones of the repository in which the pipeline runs, and commands that run in them."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from ruamel.yaml import YAML

# One thread and one hash seed, so that results can be compared byte by byte. Any request to the hub would fail.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "1", "HF_HUB_OFFLINE": "1", "DVC_NO_ANALYTICS": "1"}
REPLACED = ("models", "data", "cache")
Run = Callable[..., "subprocess.CompletedProcess[str]"]
AFTER_DPO = [
    *("health_text", "evaluate_text", "answer_text", "judge_text"),
    *("health_image", "evaluate_image", "report", "publish"),
]


def run_in(folder: Path, *command: str, check: bool = True, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in a folder, in its `environment_of`. Merges stderr into stdout."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment_of(folder) | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert not check or done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-8000:]}"
    return done


def environment_of(folder: Path) -> dict[str, str]:
    """The environment of commands in a folder: `ENVIRONMENT`, without the user's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_", "MLFLOW_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    names = {f"GIT_{who}_{what}": "a@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return {**kept, **ENVIRONMENT, "PATH": path, "DVC_SITE_CACHE_DIR": f"{folder}.site", **names}


def clone(root: Path, folder: Path) -> None:
    """Create or update a clone of the repository and of its uncommitted changes, as one commit.

    Without the history, which DVC copies for each experiment that runs in a folder of its own.
    """

    def git(*arguments: str, at: Path = folder) -> str:
        return run_in(at, "git", *arguments).stdout

    if not (folder / ".git").exists():
        folder.mkdir(parents=True, exist_ok=True)
        git("clone", "--quiet", str(root), ".")
    git("fetch", "--quiet", str(root), "HEAD")
    git("reset", "--quiet", "--hard", "FETCH_HEAD")
    git("clean", "--quiet", "-d", "--force")
    for name in git("ls-files", "--modified", "--others", "--exclude-standard", at=root).splitlines():
        if (root / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    git("add", "--all")
    commit = git("commit-tree", git("write-tree").strip(), "-m", "The repository and its uncommitted changes").strip()
    git("reset", "--quiet", commit)


def link_copy(tiny: Path, folder: Path) -> None:
    """Copy a clone in which the pipeline has run. The copies share files that are replaced, never modified in place."""

    def link(source: str, target: str) -> None:
        parts = Path(source).relative_to(tiny).parts
        if parts[0] in REPLACED or parts[:2] == (".dvc", "cache"):
            os.link(source, target)
        else:
            shutil.copy2(source, target)

    shutil.copytree(tiny, folder, copy_function=link, symlinks=True)


def set_params(folder: Path, changes: Mapping[str, object]) -> None:
    """Set values in params.yaml by dotted key."""
    path = folder / "params.yaml"
    yaml = YAML()
    tree = yaml.load(path)
    for key, value in changes.items():
        *parents, last = key.split(".")
        place = tree
        for parent in parents:
            place = place[parent]
        assert last in place, key
        place[last] = value
    yaml.dump(tree, path)


def stages_run(output: str) -> list[str]:
    """The stages that ran, in order, read from the output of `dvc repro`."""
    return re.findall(r"^Running stage '(?:.*dvc\.yaml:)?(.*)':$", output, re.MULTILINE)


def without_rounds(stages: list[str]) -> list[str]:
    """Those that are not of rounds."""
    return [name for name in stages if "_round" not in name and name != "select_policy"]
