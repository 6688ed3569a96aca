"""A transfer that is cut goes on where it stopped, from a web server of our own that cuts it."""

import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from refused_sources import KEY, refusal
from sites import Site, serving, tag

from prefdag.config.sources import PypiSource, UrlSource
from prefdag.sources import pypi, url
from prefdag.sources.fetching import fetch
from prefdag.sources.resuming import Partial, WrongPartError, kept_transfer

CONTENT = bytes(range(256)) * 4000  # every place in it differs from the next
OTHER = CONTENT[::-1]
ROWS = "/data/rows.bin"
WHEEL = "toy-1.0-py3-none-any.whl"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for module in (url, pypi):
        monkeypatch.setattr(module, "PAUSES", (0.0, 0.0))
    with serving() as server:
        server.pages[ROWS] = CONTENT, "application/octet-stream"
        yield server


def source(site: Site, content: bytes = CONTENT) -> UrlSource:
    return UrlSource(kind="url", url=site.address + ROWS, sha256=hashlib.sha256(content).hexdigest())


def test_each_byte_comes_once(site: Site, tmp_path: Path) -> None:
    """Also after more cuts than there are attempts, since each has brought something."""
    site.cut[ROWS] = 6
    fetch(source(site), tmp_path / "out", KEY)
    assert (tmp_path / "out/rows.bin").read_bytes() == CONTENT
    assert site.sent == len(CONTENT)
    left, starts = len(CONTENT), []
    for _ in range(6):
        left -= left // 2
        starts.append(f"bytes={len(CONTENT) - left}-")
    assert site.ranges == starts


def test_a_server_that_ignores_range_sends_all_again(site: Site, tmp_path: Path) -> None:
    site.parts, site.cut[ROWS] = False, 2
    fetch(source(site), tmp_path / "out", KEY)
    assert (tmp_path / "out/rows.bin").read_bytes() == CONTENT
    assert len(site.ranges) == 2
    site.cut[ROWS] = 99  # never further than half-way
    assert "the server interrupted the transfer; try again" in refusal(source(site), tmp_path / "again")
    assert site.cut[ROWS] == 99 - 3  # later attempts bring no more than the first


def test_a_file_that_changes_meanwhile_is_never_mixed(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(content: bytes) -> dict[str, str]:
        site.pages[ROWS] = OTHER, "application/octet-stream"  # for the next request
        return {"ETag": tag(content)}

    site.version, site.cut[ROWS] = version, 1
    fetch(source(site, OTHER), tmp_path / "out", KEY)
    assert (tmp_path / "out/rows.bin").read_bytes() == OTHER
    assert len(site.ranges) == 1


@pytest.mark.parametrize(
    ("version", "asked"),
    [
        ({}, 0),  # nothing says whether the file is still the same
        ({"ETag": 'W/"1"'}, 0),  # the same in meaning, not in bytes
        ({"Last-Modified": "Sun, 29 Nov 2026 12:00:00 GMT"}, 1),
        ({"ETag": 'W/"1"', "Last-Modified": "Sun, 29 Nov 2026 12:00:00 GMT"}, 1),
    ],
)
def test_the_rest_is_asked_for_if_the_server_names_the_version(
    version: dict[str, str], asked: int, site: Site, tmp_path: Path
) -> None:
    site.version, site.cut[ROWS] = lambda content: version, 1
    fetch(source(site), tmp_path / "out", KEY)
    assert (tmp_path / "out/rows.bin").read_bytes() == CONTENT
    assert len(site.ranges) == asked


def test_the_hash_is_that_of_the_whole(site: Site, tmp_path: Path) -> None:
    """A server that tells the same version of two files is found out."""
    site.version = lambda content: (site.pages.update({ROWS: (OTHER, "")}), {"ETag": '"1"'})[1]
    site.cut[ROWS] = 1
    middle = len(CONTENT) // 2
    mixed = hashlib.sha256(CONTENT[:middle] + OTHER[middle:]).hexdigest()
    assert f"but 'rows.bin' has sha256: {mixed}" in refusal(source(site), tmp_path / "out")


def offer_wheel(site: Site, name: str) -> bytes:
    """Put a wheel with one file on the index. Returns it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("toy/rows.bin", CONTENT)
    site.offer("toy", **{name: buffer.getvalue()})
    return buffer.getvalue()


def member_of(name: str, wheel: bytes) -> PypiSource:
    return PypiSource(
        kind="pypi",
        package="toy",
        version="1.0",
        file=name,
        sha256=hashlib.sha256(wheel).hexdigest(),
        member="toy/rows.bin",
    )


def test_an_index_of_packages(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"{site.address}/simple/")
    wheel = offer_wheel(site, WHEEL)
    site.cut[f"/files/{WHEEL}"] = 3
    before = len(site.pages["/simple/toy/"][0])
    fetch(member_of(WHEEL, wheel), tmp_path / "out", KEY)
    assert (tmp_path / "out/rows.bin").read_bytes() == CONTENT
    assert site.sent < before + len(wheel) + 3 * pypi.CHUNK  # the last chunk before a cut comes again
    assert len(site.ranges) == 3


def test_a_part_that_starts_elsewhere_is_never_appended(tmp_path: Path) -> None:
    partial = Partial(tmp_path / "file")
    with partial.open(200, {"ETag": '"1"'}) as stream:
        stream.write(b"abc")
    assert partial.headers() == {"Accept-Encoding": "identity", "Range": "bytes=3-", "If-Range": '"1"'}
    for elsewhere in ("bytes 2-9/10", "bytes 4-9/10", "", "bytes */10"):
        with pytest.raises(WrongPartError):
            partial.open(206, {"Content-Range": elsewhere})
        assert partial.headers() == {"Accept-Encoding": "identity"}  # the whole file again
    with partial.open(206, {"Content-Range": "bytes 3-9/10"}) as stream:
        stream.write(b"defghij")
    assert (tmp_path / "file").read_bytes() == b"abcdefghij"


def test_what_is_already_whole_or_was_packed_for_the_way(tmp_path: Path) -> None:
    partial = Partial(tmp_path / "file")
    assert not partial.beyond(416)
    with partial.open(200, {"ETag": '"1"'}) as stream:
        stream.write(b"abc")
    assert not partial.beyond(206)
    assert partial.beyond(416)
    assert "Range" not in partial.headers()
    with partial.open(200, {"ETag": '"1"', "Content-Encoding": "gzip"}) as stream:
        stream.write(b"abc")
    assert "Range" not in partial.headers()
    assert (partial.grew(), partial.grew()) == (True, False)


KILLED = """
import os, signal, sys, time
from pathlib import Path
from prefdag.config.sources import PypiSource, UrlSource
from prefdag.sources.fetching import fetch

time.sleep = lambda seconds: os.kill(os.getpid(), signal.SIGKILL)  # after the first cut
fetch(eval(sys.argv[1]), Path("out"), "key")
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["url", "pypi"])
def test_a_transfer_whose_process_was_killed_goes_on(
    kind: str, site: Site, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    wanted: UrlSource | PypiSource = source(site)
    if kind == "pypi":
        monkeypatch.setenv("UV_DEFAULT_INDEX", f"{site.address}/simple/")
        wanted = member_of(WHEEL, offer_wheel(site, WHEEL))
    place = ROWS if kind == "url" else f"/files/{WHEEL}"
    site.cut[place] = 1
    environment = {**os.environ, "DVC_ROOT": str(tmp_path), "PYTHONPATH": str(root), "NO_PROXY": "127.0.0.1"}
    killed = subprocess.run([sys.executable, "-c", KILLED, repr(wanted)], cwd=tmp_path, env=environment, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    shutil.copytree(tmp_path / ".prefdag", kept, dirs_exist_ok=True)
    fetch(wanted, tmp_path / "again", KEY)
    assert (tmp_path / "again/rows.bin").read_bytes() == CONTENT
    assert len(site.ranges) == 1
    assert not list((kept / "downloads").iterdir())


def test_two_processes_never_write_into_one_transfer(kept: Path) -> None:
    with kept_transfer("a source") as first, kept_transfer("a source") as second, kept_transfer("another") as other:
        assert len({first, second, other}) == 3
        Path(second, "part").touch()
    assert not list((kept / "downloads").iterdir())


def test_what_has_come_is_kept_after_an_error_and_nothing_else(kept: Path) -> None:
    with suppress(ConnectionError), kept_transfer("a source") as folder:
        raise ConnectionError
    assert not folder.exists()
    with suppress(ConnectionError), kept_transfer("a source") as folder:
        Path(folder, "part").touch()
        raise ConnectionError
    with kept_transfer("a source") as again:
        assert [path.name for path in again.iterdir()] == ["part"]
