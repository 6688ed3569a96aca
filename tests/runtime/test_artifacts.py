"""Files are written completely or not at all, leftovers of killed writers are removed, and hashes match the content."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prefdag.runtime import hashing
from prefdag.runtime.artifacts import sha256, umask, writing


def test_a_block_that_raises_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "metrics.json"
    target.write_text("old")

    def fail() -> None:
        with writing(target) as path:
            path.write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("metrics.json", "old")]


def test_only_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    """The temporary file of a live writer (here our parent) is kept, and so is a file with a similar name."""
    script = (
        "import os, signal, sys; from pathlib import Path; from prefdag.runtime.artifacts import writing\n"
        "with writing(Path(sys.argv[1])) as path: path.mkdir(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "model")])
    killed.wait()
    alive, other = tmp_path / f".model.{os.getppid()}.tmp", tmp_path / ".model.old.tmp"
    for path in (alive, other):
        path.mkdir()
    assert (tmp_path / f".model.{killed.pid}.tmp").is_dir()
    with writing(tmp_path / "model") as folder:
        folder.mkdir()
    assert {path.name for path in tmp_path.iterdir()} == {"model", alive.name, other.name}


@pytest.mark.parametrize(("world", "written"), [("2", False), (None, True)])
def test_the_first_of_several_processes_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: str | None, written: bool
) -> None:
    """A RANK without WORLD_SIZE is no launcher's."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world:
        monkeypatch.setenv("WORLD_SIZE", world)
    with writing(tmp_path / "out") as path:
        path.write_text("x")
    assert (tmp_path / "out").exists() == written


@pytest.mark.slow
def test_a_settled_file_is_read_once_and_a_fresh_or_new_one_always(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The contents have the same size, and while the file is fresh also the same modification time."""
    reads: list[int] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *arguments: (reads.append(1), digest(*arguments))[1])
    monkeypatch.setattr(hashing, "SETTLED", 0.2)
    path = tmp_path / "file"

    def check(content: bytes) -> None:
        assert sha256(path) == hashlib.sha256(content).hexdigest()

    for content in (b"one", b"two", b"six"):
        path.write_bytes(content)
        os.utime(path, (1, 1))
        check(content)
    time.sleep(0.3)
    del reads[:]
    check(b"six")
    check(b"six")
    assert len(reads) == 1
    path.write_bytes(b"ten")
    time.sleep(0.3)
    check(b"ten")
    path.rename(tmp_path / "old")
    path.write_bytes(b"own")
    time.sleep(0.3)
    check(b"own")


@pytest.mark.parametrize(("mask", "modes"), [(0o022, {0o644, 0o755}), (0o077, {0o600, 0o700}), (0o002, {0o664, 0o775})])
def test_the_users_umask_is_honoured(mask: int, modes: set[int], tmp_path: Path) -> None:
    """Also for a file that its writer made readable for its owner only, or for everybody."""
    before = os.umask(mask)
    try:
        assert umask() == mask
        with writing(tmp_path / "in/folder") as folder:
            (folder / "below").mkdir(parents=True)
            for name, mode in (("a", 0o600), ("below/b", 0o666)):
                (folder / name).write_text("x")
                (folder / name).chmod(mode)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "in", *(tmp_path / "in").rglob("*"))} == modes
