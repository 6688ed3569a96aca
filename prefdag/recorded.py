"""Refuses outputs that are not what dvc.lock records.

When a stage ends, DVC records the hashes of its outputs in dvc.lock. Whatever reads an output calls `recorded` first, so a
file that was damaged or edited since is never read as if a stage had written it:

    frame = read_table(recorded(Path("data/pairs/test.parquet")))

A stage may read what it has just written itself: dvc.lock still has the hashes of its last run.
"""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from prefdag.lifecycle.errors import DataError
from prefdag.runtime.dvc_files import LOCK, files, parse_lock
from prefdag.runtime.hashing import dvc_hash
from prefdag.runtime.running import running_stage
from prefdag.runtime.yaml import read_text

_checks = True  # False inside `unchecked`


@contextmanager
def unchecked() -> Iterator[None]:
    """Take every output as it is while the block runs, in all threads."""
    global _checks
    _checks = False
    try:
        yield
    finally:
        _checks = True


def recorded(path: Path) -> Path:
    """`path`, if the output that contains it has the bytes that dvc.lock records.

    An unrecorded path is not checked, and neither is an output of the current stage.

    Raises:
        DataError: the bytes differ.
    """
    output = _output(path) if _checks else None
    if output is None or output.stage == _current_stage():
        return path
    name, expected, _ = output
    if Path(name).exists() and dvc_hash(Path(name)) != expected:
        raise DataError(
            f"{name}: changed since its stage wrote it, as {LOCK} shows; `prefdag verify` names the files, `dvc checkout "
            f"{name}` or `dvc repro` brings the output back, and `dvc commit {name}` keeps the change"
        )
    return path


def check_recorded(path: Path) -> None:
    """Check that dvc.lock records `path`, and that its bytes are the recorded ones.

    Raises:
        DataError: it is missing or unrecorded, or its bytes differ.
    """
    if not path.exists():
        raise DataError(f"{path}: not found; run `dvc repro` first")
    if _output(path) is None:
        raise DataError(f"{path}: {LOCK} does not record it; run `dvc repro` first")
    recorded(path)


class RecordedOutput(NamedTuple):
    """An output that dvc.lock records."""

    path: str
    hash: str
    stage: str


def _current_stage() -> str | None:
    """The name of the stage that runs in this process."""
    with suppress(LookupError):
        return running_stage().name
    return None


def _output(path: Path) -> RecordedOutput | None:
    """The recorded output that `path` is or is in."""
    here = path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path
    names = [parent.as_posix() for parent in (here, *here.parents)]
    for lock in filter(Path.exists, files(LOCK)):
        status = lock.stat()
        known = outputs(lock, status.st_ino, status.st_size, status.st_mtime_ns)
        if name := next((name for name in names if name in known), None):
            return known[name]
    return None


@functools.lru_cache(maxsize=16)
def outputs(lock: Path, *identity: int) -> Mapping[str, RecordedOutput]:
    """The outputs in one dvc.lock, by path. Raises `ParamsError` if DVC did not write it."""
    stages = parse_lock(read_text(lock), str(lock))
    return {
        out["path"]: RecordedOutput(out["path"], out["md5"], name)
        for name, stage in stages.items()
        for out in stage.get("outs") or []
    }
