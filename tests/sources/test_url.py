"""Files at a URL, from a web server of our own on the loopback interface and from fsspec's file system in memory."""

import hashlib
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
import refused_sources
from refused_sources import KEY
from sites import Site, serving

from prefdag.config.sources import UrlSource
from prefdag.project.pinning import pins
from prefdag.runtime import artifacts
from prefdag.sources import url
from prefdag.sources.fetching import fetch

CONTENT = b'{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}\n' * 4000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(url, "PAUSES", (0.0, 0.0))
    with serving() as server:
        server.pages["/data/rows.jsonl"] = CONTENT, "application/octet-stream"
        yield server


def at(address: str, sha256: str | None = DIGEST) -> UrlSource:
    return UrlSource(kind="url", url=address, sha256=sha256)


def refusal(source: UrlSource, out: Path) -> str:
    """Never with the password that is in some of the addresses."""
    message = refused_sources.refusal(source, out)
    assert "hunter2" not in message
    return message


def test_a_file_under_its_own_name_or_another(site: Site, tmp_path: Path) -> None:
    site.pages["/api/7/my rows.jsonl"] = site.pages["/files/99"] = site.pages["/data/rows.jsonl"]
    for path, name in {
        "/data/rows.jsonl": "rows.jsonl",
        "/data/rows.jsonl?download=1": "rows.jsonl",
        "/api/7/my%20rows.jsonl": "my rows.jsonl",
        "/files/99#rows.jsonl": "rows.jsonl",
    }.items():
        with artifacts.writing(tmp_path / "out") as folder:
            fetch(at(site.address + path), folder, KEY)
        (file,) = (tmp_path / "out").iterdir()
        assert (file.name, file.read_bytes()) == (name, CONTENT)


@pytest.mark.parametrize("pinned", [None, "...", "0" * 64])
def test_without_the_right_hash_it_says_which_that_is(site: Site, tmp_path: Path, pinned: str | None) -> None:
    source = at(f"{site.address}/data/rows.jsonl", pinned)
    assert f"but 'rows.jsonl' has sha256: {DIGEST}; write that" in refusal(source, tmp_path / "out")
    assert pins(source, again=True) == {"sha256": DIGEST}


def test_what_is_pinned_is_not_fetched_to_pin_it(site: Site) -> None:
    assert pins(at(f"{site.address}/data/rows.jsonl")) == {}
    assert not site.asked


def test_a_transfer_that_breaks_off_is_repeated_and_in_the_end_refused(site: Site, tmp_path: Path) -> None:
    source = at(f"{site.address}/data/rows.jsonl")
    site.cut["/data/rows.jsonl"] = 2
    fetch(source, tmp_path / "first", KEY)
    assert (tmp_path / "first/rows.jsonl").read_bytes() == CONTENT
    site.cut["/data/rows.jsonl"] = 99
    assert "the server interrupted the transfer" in refusal(source, tmp_path / "out")


def test_what_is_not_there_or_refused(site: Site, tmp_path: Path) -> None:
    assert "is not there; check the address" in refusal(at(f"{site.address}/data/row.jsonl"), tmp_path / "out")
    site.fail["/data/rows.jsonl"] = 99
    assert "the server answers 503" in refusal(at(f"{site.address}/data/rows.jsonl"), tmp_path / "out")
    message = refusal(at("http://127.0.0.1:9/rows.jsonl"), tmp_path / "out")  # nobody listens
    assert "the server cannot be reached" in message
    assert "does not end with the name of a file" in refusal(at(f"{site.address}/"), tmp_path / "out")
    assert "does not end with the name of a file" in refusal(at(f"{site.address}/x#../../etc"), tmp_path / "out")


def test_credentials_come_from_the_environment_and_are_never_shown(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HUB_TOKEN", "hunter2-token")
    monkeypatch.setenv("HUB_QUERY", "sig=hunter2-query&x=1")
    host = site.address.removeprefix("http://")
    source = at(f"http://me:$HUB_TOKEN@{host}/data/rows.jsonl?$HUB_QUERY")
    fetch(source, tmp_path / "first", KEY)
    path, authorization = site.asked[-1]
    assert path == "/data/rows.jsonl?sig=hunter2-query&x=1"
    assert authorization == "Basic bWU6aHVudGVyMi10b2tlbg=="  # me:hunter2-token
    for failure in ("cut", "fail"):
        getattr(site, failure)["/data/rows.jsonl"] = 99
        assert "/data/rows.jsonl?***'" in refusal(source, tmp_path / "out")
        getattr(site, failure).clear()
    site.pages.clear()
    assert f"'http://{host}/data/rows.jsonl?***' is not there" in refusal(source, tmp_path / "out")
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("prefdag")]
    assert ours
    assert "hunter2" not in " ".join(ours)
    monkeypatch.delenv("HUB_TOKEN")
    assert "the environment variable HUB_TOKEN is not set" in refusal(source, tmp_path / "out")


def test_a_whole_url_from_the_environment(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROWS", f"{site.address}/data/rows.jsonl?sig=hunter2")
    fetch(at("$ROWS"), tmp_path / "out", KEY)
    assert (tmp_path / "out/rows.jsonl").read_bytes() == CONTENT
    monkeypatch.setenv("NOT_A_URL", f"{tmp_path}/out/rows.jsonl")
    assert "'$NOT_A_URL': a source of kind path fetches it" in refusal(at("$NOT_A_URL"), tmp_path / "again")
    site.pages.clear()
    assert "'$ROWS' is not there" in refusal(at("$ROWS"), tmp_path / "again")


def test_a_page_in_place_of_the_file(site: Site, tmp_path: Path) -> None:
    site.pages["/data/rows.jsonl"] = b"\n<!DOCTYPE html><html>Sign in</html>", "text/html"
    for pinned in (None, "0" * 64):
        assert "answers with a web page, not a file" in refusal(
            at(f"{site.address}/data/rows.jsonl", pinned), tmp_path / "out"
        )


def test_a_file_larger_than_the_disk_is_refused_before_it_comes(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=len(CONTENT) - 1))
    assert "but the disk has only 0 MB left" in refusal(at(f"{site.address}/data/rows.jsonl"), tmp_path / "out")


def test_a_packed_file_stays_packed(site: Site, tmp_path: Path) -> None:
    import gzip

    packed = gzip.compress(CONTENT)
    site.pages["/rows.jsonl.gz"] = packed, "application/gzip"
    fetch(at(f"{site.address}/rows.jsonl.gz", hashlib.sha256(packed).hexdigest()), tmp_path / "out", KEY)
    assert (tmp_path / "out/rows.jsonl.gz").read_bytes() == packed


def test_whatever_fsspec_has(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/rows.jsonl", CONTENT)
    try:
        fetch(at("memory://bucket/rows.jsonl"), tmp_path / "out", KEY)
        assert (tmp_path / "out/rows.jsonl").read_bytes() == CONTENT
        assert "is a folder; name one file" in refusal(at("memory://bucket#a.jsonl"), tmp_path / "again")
        assert "is not there" in refusal(at("memory://bucket/none.jsonl"), tmp_path / "again")
    finally:
        memory.rm("/bucket", recursive=True)


def test_a_scheme_whose_package_is_missing_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for scheme, install in {"s3": "--no-deps -r requirements-s3.lock", "gs": "dvc-gs"}.items():
        monkeypatch.setitem(sys.modules, f"dvc_{scheme}", None)  # as if it were not installed
        message = refusal(at(f"{scheme}://bucket/rows.jsonl"), tmp_path / "out")
        needs = f"{scheme}:// needs dvc-{scheme}; install it: pip install {install}"
        assert message.endswith(f"'{scheme}://bucket/rows.jsonl': {needs}")
    assert "Protocol not known: nosuch" in refusal(at("nosuch://host/rows.jsonl"), tmp_path / "out")
    assert "a source of kind hub" in refusal(at("hf://datasets/some/repo/rows.jsonl"), tmp_path / "out")
    assert "a source of kind path" in refusal(at(f"file://{tmp_path}/rows.jsonl"), tmp_path / "out")


@pytest.mark.slow
def test_a_file_on_a_remote_of_dvc(site: Site, tmp_path: Path, own_git: None) -> None:
    for command in (
        ["git", "init", "-q"],
        ["dvc", "init", "-q"],
        ["dvc", "remote", "add", "store", f"{site.address}/data"],
    ):
        subprocess.run(command, check=True)
    fetch(at("remote://store/rows.jsonl"), tmp_path / "out", KEY)
    assert (tmp_path / "out/rows.jsonl").read_bytes() == CONTENT
    assert "remote 'none' doesn't exist" in refusal(at("remote://none/rows.jsonl"), tmp_path / "again")
