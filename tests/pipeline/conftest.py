"""The pipeline itself on the tiny profile, run once: every test here starts from it, most from a copy of their own.

It stays in the scratch folder `.prefdag/tests`, where DVC runs again what changed since the last time.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clones import Run, clone, run_in
from filelock import FileLock

HERE = Path(__file__).parent
# Files that are replaced and never written to in place: a copy of the folder may share them.
REPLACED = ("models", "data", "cache")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def once(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Make a folder in the scratch folder once a session, whichever of its processes comes first."""
    session = (
        tmp_path_factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else tmp_path_factory.getbasetemp()
    )

    def folder(name: str, make: Callable[[Path], None]) -> Path:
        target = root / ".prefdag" / "tests" / name
        with FileLock(session / f"{name}.lock"):
            done = session / f"{name}.done"
            if not done.exists():
                make(target)
                done.touch()
        return target

    return folder


@pytest.fixture(scope="session")
def tiny(root: Path, once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """The clone in which the tiny profile has run. Tests read it."""

    def make(folder: Path) -> None:
        clone(root, folder)
        run_in(folder, "prefdag", "profile", "tiny")
        run_in(folder, "dvc", "repro")

    return once("tiny", make)


@pytest.fixture
def copy(tiny: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A copy of it to spoil."""
    folder = tiny.with_name(f"copy-{os.getpid()}-{abs(hash(request.node.nodeid))}")

    def link(source: str, target: str) -> None:
        parts = Path(source).relative_to(tiny).parts
        if parts[0] in REPLACED or parts[:2] == (".dvc", "cache"):
            os.link(source, target)
        else:
            shutil.copy2(source, target)

    shutil.copytree(tiny, folder, copy_function=link, symlinks=True)
    yield folder
    shutil.rmtree(folder)
    shutil.rmtree(f"{folder}.site", ignore_errors=True)


@pytest.fixture
def run(copy: Path) -> Run:
    """Run a command in the copy."""

    def command(*arguments: str, check: bool = True, **environment: str) -> "subprocess.CompletedProcess[str]":
        return run_in(copy, *arguments, check=check, **environment)

    return command
