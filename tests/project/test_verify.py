"""`prefdag verify` finds and names flipped bits that DVC itself does not report."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prefdag.cli import app
from prefdag.lifecycle.errors import ParamsError
from prefdag.project import verify

PIPELINE = """\
stages:
  one:
    cmd: python -c "open('one.txt', 'w').write('1' * 100)"
    outs: [one.txt]
  many:
    cmd: python -c "import os; os.makedirs('many/in'); [open(f'many/{n}', 'w').write(n * 50) for n in ('a', 'in/b')]"
    deps: [one.txt]
    outs: [many]
  measure:
    cmd: python -c "open('metrics.json', 'w').write('{}')"
    deps: [many]
    metrics:
      - metrics.json: {cache: false}
"""
CACHE = Path(".dvc/cache/files/md5")
REMOTE = Path("storage/files/md5")


def dvc(*arguments: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["dvc", *arguments], check=True, capture_output=True, env={**os.environ, "PATH": path})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose pipeline has run, pushed to a remote in a folder."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path_factory.mktemp("site")))
        subprocess.run(["git", "init", "--quiet"], check=True)
        Path("dvc.yaml").write_text(PIPELINE)
        dvc("init", "--quiet")
        dvc("config", "cache.type", "copy")
        dvc("remote", "add", "--default", "storage", "storage")
        dvc("repro")
        dvc("push")
    return folder


@pytest.fixture
def repo(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of that repository, as the current directory."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    subprocess.run(["cp", "-a", f"{made}/.", str(tmp_path / "repo")], check=True)
    monkeypatch.chdir(tmp_path / "repo")
    dvc("remote", "modify", "storage", "url", str(Path("storage").resolve()))


pytestmark = [pytest.mark.usefixtures("repo"), pytest.mark.slow]


def flip(path: Path) -> None:
    """Flip one bit of the middle byte. Size and time stay the same."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def objects(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def test_nothing_differs_after_a_run() -> None:
    assert list(verify.differences("storage")) == []
    result = CliRunner().invoke(app, ["verify", "--remote", "storage"])
    assert (result.exit_code, result.stdout.strip()) == (0, "everything present matches dvc.lock")


@pytest.mark.parametrize(
    ("path", "stage"), [("one.txt", "one"), ("many/a", "many"), ("many/in/b", "many"), ("metrics.json", "measure")]
)
def test_a_flipped_output_is_named(path: str, stage: str) -> None:
    flip(Path(path))
    assert list(verify.differences()) == [f"{path}: not what stage {stage} wrote"]


def test_added_and_missing_files_are_named() -> None:
    Path("many/new").write_text("")
    Path("many/a").unlink()
    assert list(verify.differences()) == [f"many/{name}: not what stage many wrote" for name in ("a", "new")]


def test_every_flipped_object_of_the_cache_is_found() -> None:
    paths = list(objects(CACHE))
    assert len(paths) == 5  # one.txt, many and its two files, and metrics.json, for the run cache
    for number, path in enumerate(paths, 1):
        flip(path)
        lines = list(verify.differences())
        assert len(lines) == number
        assert any(str(path) in line and "damaged" in line for line in lines)
    result = CliRunner().invoke(app, ["verify"])
    assert result.exit_code == 1
    assert "error: 5 differences from dvc.lock; `dvc checkout --force`" in result.output


def test_every_flipped_object_of_a_remote_is_found() -> None:
    for number, path in enumerate(objects(REMOTE), 1):
        flip(path)
        lines = list(verify.differences("storage"))
        assert len(lines) == number
        assert all(line.startswith("remote storage: ") for line in lines)
        assert sum(str(path) in line for line in lines) == 1
    assert number == 5 - 1  # without metrics.json, which is not pushed
    assert list(verify.differences()) == []  # the cache is intact


def test_an_object_missing_in_a_remote_is_named() -> None:
    gone = next(objects(REMOTE))
    gone.unlink()
    assert list(verify.differences("storage")) == [f"remote storage: {gone.parent.name}{gone.name}: missing"]


def test_a_missing_output_is_no_difference() -> None:
    Path("one.txt").unlink()
    subprocess.run(["rm", "-r", "many", CACHE], check=True)
    assert list(verify.differences()) == []
    assert list(verify.differences("storage")) == []


def test_an_unknown_remote_is_refused() -> None:
    with pytest.raises(ParamsError, match=r"^.dvc/config: remote 'away': .*; `dvc remote list` lists the remotes$"):
        list(verify.differences("away"))


def test_a_missing_lock_is_refused() -> None:
    verify.LOCK.unlink()
    with pytest.raises(ParamsError, match=r"^dvc.lock: not found"):
        list(verify.differences())
