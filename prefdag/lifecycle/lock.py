"""Keeps a stage from running twice at once, and from outliving the `dvc` that started it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from prefdag.lifecycle.errors import PrefdagError
from prefdag.lifecycle.launcher import end_with, rank


@contextmanager
def stage_lock(name: str) -> Iterator[None]:
    """Refuse a second run of a stage in this directory, such as the trainer that a killed `dvc repro` left behind."""
    if rank() > 0:  # the first of them has the lock
        yield
        return
    with only_one(name, f"{name}: already running in this directory; stop that process or wait for it"):
        yield


@contextmanager
def only_one(name: str, refusal: str) -> Iterator[None]:
    """Raises `PrefdagError` with the line `refusal` while another process of this directory holds the lock `name`."""
    path = Path(".prefdag", "locks", f"{name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout:
        raise PrefdagError(refusal) from None


def end_with_dvc() -> psutil.Process | None:
    """Under DVC, receive SIGTERM when DVC dies, so that a killed `dvc repro` leaves no trainer behind.

    Watching the parent is not enough: it may be a shell or a launcher that outlives DVC.

    Returns:
        DVC's process, if there is one.
    """
    if not (stage := os.environ.get("DVC_STAGE")):  # set for DVC's children, not for DVC itself
        return None
    dvc = next((each for each in psutil.Process().parents() if _stage_of(each) != stage), None)
    if dvc:  # otherwise the variable was set by somebody else
        end_with(dvc)
    return dvc


def _stage_of(process: psutil.Process) -> str | None:
    """The stage that DVC runs in a process. Another user's process tells nothing, and so is none of it."""
    try:
        return process.environ().get("DVC_STAGE")
    except (psutil.Error, OSError):
        return None
