"""The tests run in the environment of a stage, without telemetry. Each test has one thread, since the tests run in parallel."""

import gc
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from prefdag.lifecycle.environment import set_environment

gc.set_threshold(100_000)  # as a stage does: imports create objects for seconds, and none of them is garbage
set_environment()
os.environ.setdefault("OMP_NUM_THREADS", "1")
# On a busy machine the first example, which imports modules, exceeds hypothesis's deadline.
settings.register_profile("prefdag", deadline=None)
settings.load_profile("prefdag")


@pytest.fixture(autouse=True)
def no_precision_left() -> Iterator[None]:
    """accelerate keeps the precision of a process's first training, and each test stands for a process."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state()


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return Path(__file__).parents[1]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Run torch on one thread: several threads may add in a different order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def own_git(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `tmp_path` the current directory, for a repository in which Git and DVC have no settings except an author."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("DVC_", "GIT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / ".site"))
    monkeypatch.setenv("PYTHONPATH", str(root))
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "a")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@example.com")


def pytest_collection_finish() -> None:
    """Leave the imported modules out of every later garbage collection."""
    gc.freeze()


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Name bytes after their parameter: an archive contains its creation time, and each worker creates its own."""
    return argname if isinstance(val, bytes) else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """For `make chaos`: how many failures of each kind were tried, and how many the pipeline survived."""
    if terminalreporter.config.getoption("markexpr") != "chaos":
        return
    tried, survived = Counter[str](), Counter[str]()
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            topic = Path(report.nodeid.split("::")[0]).stem.removeprefix("test_").replace("_", " ")
            tried[topic] += 1
            survived[topic] += outcome == "passed"
    terminalreporter.section("survived/tried")
    for topic in sorted(tried):
        terminalreporter.write_line(f"{topic:<20} {survived[topic]:>3}/{tried[topic]}")
    terminalreporter.write_line(f"{'all':<20} {survived.total():>3}/{tried.total()}")
