"""The environment of the tests is that of a stage: no telemetry. A test has one thread, and as
many tests run at once as there are cores."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from prefdag.runtime.environment import set_environment

set_environment()
os.environ.setdefault("OMP_NUM_THREADS", "1")
# On a busy machine a first example, with its imports, takes longer than hypothesis allows one.
settings.register_profile("prefdag", deadline=None)
settings.load_profile("prefdag")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return Path(__file__).parents[1]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread: two may add in another order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def own_git(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tmp_path` as the current directory, for a repository of its own: Git and DVC have no settings but an author."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("DVC_", "GIT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / ".site"))
    monkeypatch.setenv("PYTHONPATH", str(root))
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "a")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@example.com")


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Bytes are named after their parameter: an archive holds the time at which it was made, and each worker makes its own."""
    return argname if isinstance(val, bytes) else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What `make chaos` is after: of each kind of trouble, how much was tried and how much survived."""
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
