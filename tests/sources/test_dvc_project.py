"""Files of another DVC project, in a repository made here."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from refused_sources import KEY, refusal

from prefdag.config.sources import DvcSource
from prefdag.project.pinning import pins
from prefdag.sources.fetching import fetch

pytestmark = pytest.mark.slow

ROWS = "a,b\n1,2\n"


@pytest.fixture
def run(own_git: None) -> Callable[..., str]:
    """Runs a command in the other project, which is made here."""
    other = Path("other")
    (other / "data/images/cats").mkdir(parents=True)
    (other / "data/rows.csv").write_text(ROWS)
    (other / "data/images/cats/one.png").write_bytes(b"1")
    (other / "notes.txt").write_text("by Git")

    def run(*command: str) -> str:
        return subprocess.run(command, cwd=other, check=True, capture_output=True, text=True).stdout.strip()

    for command in (
        "git init -q",
        "dvc init -q",
        "dvc remote add -d store ../store",
        "dvc add -q data/rows.csv data/images",
        "dvc push -q",
        "git add .",
        "git commit -q -m first",
    ):
        run(*command.split())
    shutil.rmtree(other / ".dvc/cache")
    return run


def source(path: str, revision: str | None, repo: str = "other") -> DvcSource:
    return DvcSource(kind="dvc", repo=repo, path=path, revision=revision)


def test_a_file_a_folder_and_what_git_tracks_at_a_commit(run: Callable[..., str], tmp_path: Path) -> None:
    commit = run("git", "rev-parse", "HEAD")
    (tmp_path / "other/data/rows.csv").write_text("later")
    fetch(source("data/rows.csv", commit), Path("file"), KEY)
    assert Path("file/rows.csv").read_text() == ROWS
    fetch(source("data/images", commit, str(tmp_path / "other")), Path("folder"), KEY)
    assert [p.relative_to("folder").as_posix() for p in Path("folder").rglob("*.png")] == ["cats/one.png"]
    fetch(source("notes.txt", commit, f"file://{tmp_path}/other"), Path("git"), KEY)
    assert Path("git/notes.txt").read_text() == "by Git"


def test_without_a_commit_it_says_which_that_is(run: Callable[..., str]) -> None:
    commit = run("git", "rev-parse", "HEAD")
    run("git", "branch", "stable")
    run("git", "commit", "-q", "--allow-empty", "-m", "second")
    newest = run("git", "rev-parse", "HEAD")
    for revision, right in ((None, newest), ("...", newest), ("stable", commit), (commit[:7], commit)):
        assert f"but 'other' has revision: {right}; write that" in refusal(
            source("data/rows.csv", revision), Path("out")
        )
        assert pins(source("data/rows.csv", revision)) == {"revision": right}
    assert pins(source("data/rows.csv", commit)) == {}


def test_what_is_not_there(run: Callable[..., str]) -> None:
    commit = run("git", "rev-parse", "HEAD")
    assert "there is rows.csv" in refusal(source("data/row.csv", commit), Path("out"))
    assert "cannot be fetched: " in refusal(source("data/rows.csv", "0" * 40), Path("out"))
    assert "cannot be fetched: " in refusal(source("data/rows.csv", commit, "nowhere"), Path("out"))
    assert "cannot be fetched: " in refusal(source("data/rows.csv", None, "nowhere"), Path("out"))
    shutil.rmtree("store")
    assert "cannot be fetched: " in refusal(source("data/rows.csv", commit), Path("out"))


def test_what_the_storage_damaged_is_refused(run: Callable[..., str]) -> None:
    commit = run("git", "rev-parse", "HEAD")
    (stored,) = (path for path in Path("store").rglob("*") if path.is_file() and path.read_bytes() == ROWS.encode())
    stored.chmod(0o644)
    stored.write_text("a,b\n1,3\n")
    assert "rows.csv is damaged in the storage of 'other'" in refusal(source("data/rows.csv", commit), Path("out"))


def test_a_storage_whose_package_is_missing(run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    run("dvc", "remote", "modify", "store", "url", "s3://bucket/store")
    run("git", "commit", "-q", "-a", "-m", "second")
    monkeypatch.setitem(sys.modules, "dvc_s3", None)  # as if it were not installed
    message = refusal(source("data/rows.csv", run("git", "rev-parse", "HEAD")), Path("out"))
    assert message.endswith(": s3:// needs dvc-s3; install it: pip install --no-deps -r requirements-s3.lock")


def test_notes_in_place_of_files(run: Callable[..., str]) -> None:
    commit = run("git", "rev-parse", "HEAD")
    message = refusal(source("data/rows.csv.dvc", commit), Path("out"))
    assert "is DVC's note of a file, not the file itself; write it without .dvc" in message
    Path("other/large.csv").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    run("git", "add", "large.csv")
    run("git", "commit", "-q", "-m", "second")
    message = refusal(source("large.csv", run("git", "rev-parse", "HEAD")), Path("out"))
    assert "'large.csv' is a pointer of Git LFS, not the file itself; " in message
    Path("other/late.csv").write_text("a\n")
    run("dvc", "add", "-q", "late.csv")
    run("git", "add", "late.csv.dvc")
    run("git", "commit", "-q", "-m", "third")
    shutil.rmtree("other/.dvc/cache")
    message = refusal(source("late.csv", run("git", "rev-parse", "HEAD")), Path("out"))
    assert "its content is neither in that project's cache nor on its remote; run `dvc push` there" in message
