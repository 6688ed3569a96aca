"""Read archives without extracting them: the result is bytes in memory, of plain files with plain names.

If a member is unsafe, the whole archive is rejected before that member is read. The error names the member.
"""

import gzip
import io
import re
import shutil
import tarfile
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pyarrow as pa

from prefdag.lifecycle.errors import DataError

# A small file that unpacks to gigabytes is a bomb. Images and text compress to a tenth at best, zeros to a thousandth.
MAX_GROWTH = 200  # unpacked size over packed size
HARMLESS = 64 * 2**20  # bytes that any archive may unpack to
KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


def unpacked(path: Path, name: str) -> bytes:
    """The content of a file, unpacked if its name ends in .gz or .zst; `name` is its name in error messages.

    Raises:
        DataError: the file is not a complete gzip or Zstandard file, or is a bomb.
    """
    packing = {".gz": "gzip", ".zst": "Zstandard"}.get(path.suffix.lower())
    if packing is None:
        return path.read_bytes()
    whole = io.BytesIO()
    try:
        with gzip.open(path) if packing == "gzip" else pa.CompressedInputStream(path.open("rb"), "zstd") as stream:
            # In pieces, since a single read of the limit would allocate that much memory.
            shutil.copyfileobj(_Bounded(stream, path, name), whole, 2**20)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: not a complete {packing} file ({error}); fetch it again") from None
    return whole.getvalue()


def tar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """The name and content of each file in a tar, gzipped or not, in order. Names are relative, without `.` and `//`.

    Raises:
        DataError: the file is not a complete tar, or is a bomb; or a member is not a plain file, has a path that leaves the
            archive, occurs twice, or differs from another only in letter case.
    """
    seen: dict[str, tuple[str, bool]] = {}
    declared = 0
    try:
        with path.open("rb") as packed:
            gzipped = packed.read(2) == b"\x1f\x8b"
        # As a stream, which is never read backwards, so that no header can make the reader loop.
        with (
            gzip.open(path) if gzipped else path.open("rb") as stream,
            tarfile.open(fileobj=_Bounded(stream, path, path.name), mode="r|") as archive,
        ):
            for member in archive:
                name = str(PurePosixPath(member.name))
                declared += member.size
                bomb = _bomb(path) if declared > _limit(path) else None
                if fault := _unsafe(member) or _clash(member, seen) or bomb:
                    raise DataError(f"{path.name}: {member.name!r} {fault}")
                if not member.isdir():
                    file = archive.extractfile(member)
                    assert file is not None, "it is a plain file"
                    yield name, file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise DataError(f"{path.name}: not a complete tar file ({reason}); fetch it again") from None


def _unsafe(member: tarfile.TarInfo) -> str | None:
    """What is wrong with a member, regardless of the others."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or "\\" in member.name or re.match("[A-Za-z]:", member.name):
        return "is an absolute or a Windows path; pack it again with relative paths and /"
    if ".." in path.parts:
        return "leaves its folder by '..'; pack it again with plain paths"
    if member.issparse():
        return "is a sparse file; pack plain files only"
    if not (member.isreg() or member.isdir()):
        return f"is {KINDS.get(member.type, 'not a plain file')}; pack plain files only"
    return None


def _clash(member: tarfile.TarInfo, seen: dict[str, tuple[str, bool]]) -> str | None:
    """How a member clashes with the members before it.

    Args:
        seen: the spelling of each name and whether it is a file, by case-folded name. The member is added to it.
    """
    path = PurePosixPath(member.name)
    for part, is_file in [(path, not member.isdir()), *((folder, False) for folder in path.parents)]:
        # Names with the same folded form are one file on a file system that ignores letter case or the form of accents.
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", str(part)).casefold())
        if folded not in seen:
            seen[folded] = (str(part), is_file)
            continue
        spelled, was_file = seen[folded]
        if spelled != str(part):
            return f"differs from {spelled!r} only in letter case or in the form of an accent; rename one"
        if is_file or was_file:
            return "occurs twice; pack the archive again"
    return None


def _limit(path: Path) -> int:
    """The number of bytes that the archive `path` may unpack to."""
    return max(HARMLESS, MAX_GROWTH * path.stat().st_size)


def _bomb(path: Path) -> str:
    return f"unpacks to more than {_limit(path) / 2**20:,.0f} MiB, like a zip bomb; pack it again"


class _Bounded(io.BufferedIOBase):
    """A stream that raises an error beyond the limit, even if a header states a smaller size."""

    def __init__(self, stream: io.BufferedIOBase, path: Path, name: str) -> None:
        self._stream = stream
        self._left = _limit(path)
        self._error = f"{name}: {_bomb(path)}"

    def read(self, size: int | None = -1) -> bytes:
        content = self._stream.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise DataError(self._error)
        return content
