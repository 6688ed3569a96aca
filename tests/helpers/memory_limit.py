"""A limit on memory, as a machine or a container has: the kernel kills the process that exceeds it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Where control groups are, with the name of the limit: version 1, version 2.
GROUPS = {"/sys/fs/cgroup/memory": "memory.limit_in_bytes", "/sys/fs/cgroup": "memory.max"}


@contextmanager
def memory_limit(size: int) -> Iterator[Path]:
    """Yield the file into which a process writes its id to get `size` bytes from then on. Skips where that is not allowed."""
    group = next((group for parent, limit in GROUPS.items() if (group := _group(Path(parent), limit, size))), None)
    if group is None:
        pytest.skip("control groups for memory are not allowed here")
    try:
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def _group(parent: Path, limit: str, size: int) -> Path | None:
    group = parent / f"prefdag-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        return None
    try:
        (group / limit).write_text(str(size))
    except OSError:  # there is no controller of memory
        group.rmdir()
        return None
    return group
