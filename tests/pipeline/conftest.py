"""The pipeline on the tiny profile runs once. Every test here starts from the result, most from their own copy.

Its language model is a small random one.

The result is kept in the scratch folder `.prefdag/tests`, where DVC reruns only what has changed since.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clones import Run, clone, link_copy, run_in, set_params
from every_stage import make_project
from filelock import FileLock
from small_model import write_small

from prefdag.runtime.dvc_files import files

HERE = Path(__file__).parent


# The longest tests start first, so that none of them is still running at the end. The other tests of the pipeline come last:
# while the first worker runs the pipeline, the others have tests that do not wait for it.
LONGEST = [
    *("test_queue.py", "test_rebuild.py", "test_repro.py", "test_slurm.py", "test_team.py", "test_ranks.py"),
    *("test_killed_round.py", "test_dead_server.py", "test_exempt.py", "test_team_servers.py", "test_sampler.py"),
]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and not item.get_closest_marker("chaos"):
            item.add_marker(pytest.mark.slow)
    order = {HERE / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order) + (HERE in item.path.parents)))


@pytest.fixture(scope="session")
def once(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Make a folder in the scratch folder once per session, in the first process that needs it."""
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
    """The clone in which the tiny profile has run, with a small language model. Tests only read it."""

    def make(folder: Path) -> None:
        clone(root, folder)
        run_in(folder, "prefdag", "profile", "tiny")
        # The committed one has the downloads as up to date, so the run cache would not get them.
        for lock in files(folder / "dvc.lock"):
            lock.unlink()
        run_in(folder, "dvc", "repro", "download_model")  # for its tokenizer
        shutil.copyfile(folder / "dvc.lock", folder.with_name("own_model.lock"))
        model = folder.with_name("model")
        write_small(folder / "models" / "base", model)
        set_params(folder, {"download_model.source": {"kind": "path", "path": str(model), "sha256": None}})
        run_in(folder, "dvc", "repro")

    return once("tiny", make)


@pytest.fixture(scope="session")
def small(tiny: Path, once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A project without DVC's records, and what one process makes of it. Tests only read it."""

    def make(folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        make_project(tiny, folder)
        run_in(folder, sys.executable, "tests/pipeline/every_stage.py", PYTHONPATH=str(folder))

    return once("small", make)


@pytest.fixture
def copy(tiny: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A copy of `tiny` that a test may change."""
    folder = tiny.with_name(f"copy-{os.getpid()}-{abs(hash(request.node.nodeid))}")
    link_copy(tiny, folder)
    yield folder
    shutil.rmtree(folder)
    shutil.rmtree(f"{folder}.site", ignore_errors=True)


@pytest.fixture
def run(copy: Path) -> Run:
    """Runs a command in the copy."""

    def command(*arguments: str, check: bool = True, **environment: str) -> "subprocess.CompletedProcess[str]":
        return run_in(copy, *arguments, check=check, **environment)

    return command
