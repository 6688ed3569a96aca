"""Archives are read in memory. A hostile one is refused with the name of the member, and nothing is written."""

import gzip
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdag.formats import archives
from prefdag.formats.archives import tar_members, unpacked
from prefdag.formats.records import read_records
from prefdag.lifecycle.errors import DataError

Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"x", **fields: Any) -> Member:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry, content


def tar(*members: Member) -> bytes:
    """A tar of members with arbitrary headers."""
    blocks = [entry.tobuf(tarfile.PAX_FORMAT) + data + b"\0" * (-len(data) % 512) for entry, data in members]
    return b"".join(blocks) + b"\0" * 1024


ZEROS = b"\0" * 2**21
PAX_BOMB = member("pax", ZEROS, type=tarfile.XHDTYPE)

# The members after a benign first one, and the error.
HOSTILE: dict[str, tuple[bytes, str]] = {
    "parent": (tar(member("../evil.png")), r"'\.\./evil\.png' leaves its folder by '\.\.'"),
    "parent-inside": (tar(member("c/../../evil.png")), r"'c/\.\./\.\./evil\.png' leaves its folder"),
    "parent-folder": (tar(member("c/..", b"", type=tarfile.DIRTYPE)), r"'c/\.\.' leaves its folder"),
    "absolute": (tar(member("/tmp/evil.png")), "'/tmp/evil.png' is an absolute or a Windows path"),
    "drive": (tar(member("C:evil.png")), "'C:evil.png' is an absolute or a Windows path"),
    "backslash": (tar(member("c\\..\\evil.png")), r"'c.*evil\.png' is an absolute or a Windows path"),
    "symbolic-link": (tar(member("c/2.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")), "'c/2.png' is a symb"),
    "hard-link": (tar(member("c/2.png", b"", type=tarfile.LNKTYPE, linkname="c/1.png")), "'c/2.png' is a hard link"),
    "character-device": (tar(member("c/2.png", b"", type=tarfile.CHRTYPE)), "'c/2.png' is a device"),
    "block-device": (tar(member("c/2.png", b"", type=tarfile.BLKTYPE)), "'c/2.png' is a device"),
    "pipe": (tar(member("c/2.png", b"", type=tarfile.FIFOTYPE)), "'c/2.png' is a pipe"),
    "sparse": (tar(member("c/2.png", b"", type=tarfile.GNUTYPE_SPARSE)), "'c/2.png' is a sparse file"),
    "twice": (tar(member("c/1.png")), "'c/1.png' occurs twice"),
    "twice-by-a-dot": (tar(member("./c//1.png")), r"'\./c//1\.png' occurs twice"),
    "file-and-folder": (tar(member("c")), "'c' occurs twice"),
    "folder-and-file": (tar(member("c/1.png/2.png")), "'c/1.png/2.png' occurs twice"),
    "case": (tar(member("c/1.PNG")), r"'c/1\.PNG' differs from 'c/1\.png' only in letter case"),
    "case-of-the-folder": (tar(member("C/2.png")), r"'C/2\.png' differs from 'c' only in letter case"),
    "accent": (
        tar(member("c/\u00e9"), member("c/e\u0301")),
        r"'c/.*' differs from 'c/.*' only in letter case or in the form",
    ),
    "declared": (tar(member("c/2.png", b"x", size=10**11)), r"'c/2\.png' unpacks to more than 1 MiB"),
    "together": (tar(*(member(f"c/{n}", ZEROS[: 2**18]) for n in range(2, 7))), "'c/5' unpacks to more than 1 MiB"),
    "before-the-name": (tar(PAX_BOMB), "unpacks to more than 1 MiB"),
    "backwards": (tar(member("c/2.png", b"x", size=-(10**6))), "not a complete tar file"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_tar_is_refused_by_name(
    kind: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "HARMLESS", 2**20)
    monkeypatch.setattr(archives, "MAX_GROWTH", 0)
    content, line = HOSTILE[kind]
    content = tar(member("c/1.png"))[:1024] + content
    path = tmp_path / "inside" / "x.tar"
    path.parent.mkdir()
    monkeypatch.chdir(path.parent)
    path.write_bytes(gzip.compress(content) if packed else content)
    members = tar_members(path)
    assert next(members) == ("c/1.png", b"x")
    with pytest.raises(DataError, match=rf"^x\.tar: {line}") as error:
        list(members)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == [path.parent, path]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_benign_tar_is_read_completely(form: int, packed: bool, tmp_path: Path) -> None:
    """Folders, dots in names, long names, an empty file and megabytes that compress well are all accepted."""
    contents = {"./c/1.png": b"one", "c/..2.png": b"", f"d/{'long' * 20}/{'name' * 20}.png": b"two", "d/zeros": ZEROS}
    with tarfile.open(tmp_path / "x.tar", "w:gz" if packed else "w", format=form) as archive:
        for folder in (".", "c", "c/", "d"):
            archive.addfile(*member(folder, b"", type=tarfile.DIRTYPE)[:1])
        for name, content in contents.items():
            archive.addfile(member(name, content)[0], io.BytesIO(content))
    assert dict(tar_members(tmp_path / "x.tar")) == {name.removeprefix("./"): c for name, c in contents.items()}


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6), st.integers(0, 2600))
@settings(max_examples=200, deadline=None)
def test_a_damaged_tar_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]], cut: int
) -> None:
    content = bytearray(tar(member("c/1.png"), member("c/2.png", b"x" * 600)))
    for place, byte in edits:
        content[place] = byte
    path = tmp_path_factory.mktemp("damaged") / "x.tar"
    path.write_bytes(content[:cut])
    message = "x.tar: "
    try:
        list(tar_members(path))
    except DataError as error:
        message = str(error)
    assert message.startswith("x.tar: ")
    assert "\n" not in message


@pytest.mark.slow
def test_a_gzip_bomb_is_refused(tmp_path: Path) -> None:
    """65 MiB of zeros, compressed a thousandfold, are refused; 64 MiB are accepted."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"\0" * 65 * 2**20, 1))
    with pytest.raises(DataError, match=r"^a: unpacks to more than 64 MiB, like a zip bomb; pack it again$"):
        unpacked(path, "a")
    with pytest.raises(DataError, match=r"^a: unpacks"):
        read_records(path, "a")
    path.write_bytes(gzip.compress(b"\0" * 64 * 2**20, 1))
    assert unpacked(path, "a") == b"\0" * 64 * 2**20


def test_a_large_archive_may_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "HARMLESS", 0)
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(bytes(range(256)) * 40))
    assert 20 < 256 * 40 / path.stat().st_size < archives.MAX_GROWTH
    assert unpacked(path, "a") == bytes(range(256)) * 40


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(b"x" * 1000)[:-9], gzip.compress(b"x") + b"more"])
def test_a_broken_gzip_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"^a: not a complete gzip file"):
        unpacked(path, "a")


def test_a_file_without_a_gz_suffix_is_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\x1f\x8b")
    assert unpacked(tmp_path / "a.json", "a") == b"\x1f\x8b"
