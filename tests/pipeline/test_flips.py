"""A flipped byte in objects of the cache or of a remote is found before training uses it."""

import os
import random
import re
from pathlib import Path

import pytest
from clones import Run

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


def flip(path: Path, place: int) -> None:
    """Flip one bit of one byte, in a new file of the same name, size and time."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[place % len(content)] ^= 1
    path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def objects(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def named(output: str) -> set[str]:
    return set(re.findall(r"\b([0-9a-f]{2}/[0-9a-f]{30}(?:\.dir)?)\b", output))


@pytest.mark.parametrize("where", ["cache", "remote"])
def test_every_flip_is_found(where: str, copy: Path, run: Run) -> None:
    folder = copy / ".dvc" / "cache" / "files" / "md5"
    arguments = []
    if where == "remote":
        run("dvc", "remote", "add", "--default", "storage", str(copy / "storage"))
        run("dvc", "push")
        folder, arguments = copy / "storage" / "files" / "md5", ["--remote", "storage"]
    draw = random.Random(0)
    flipped = draw.sample(objects(folder), 24)
    for path in flipped:
        flip(path, draw.randrange(path.stat().st_size))
    done = run("prefdag", "verify", *arguments, check=False)
    assert done.returncode != 0
    assert named(done.stdout) == {f"{path.parent.name}/{path.name}" for path in flipped}, done.stdout
