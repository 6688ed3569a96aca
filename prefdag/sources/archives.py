"""Archives, read and never extracted: what comes out is bytes in memory, of plain files with plain names.

An archive is refused whole, by the name of the member at fault, before anything of that member is read.
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

from prefdag.runtime.errors import DataError

# A small file that unpacks to gigabytes is a bomb. Images and text shrink to a tenth at best, zeros to a thousandth.
MAX_GROWTH = 200  # unpacked size over packed size ...
HARMLESS = 64 * 2**20  # ... which so many bytes may always have
KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


def unpacked(path: Path, name: str) -> bytes:
    """What is in a file, unpacked where its name ends in .gz; `name` is how errors call it.

    Raises:
        DataError: it is no whole gzip file, or a bomb.
    """
    if path.suffix.lower() != ".gz":
        return path.read_bytes()
    whole = io.BytesIO()
    try:
        with gzip.open(path) as stream:
            # In pieces: a read of the limit at once would reserve that much memory.
            shutil.copyfileobj(_Bounded(stream, path, name), whole, 2**20)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: not a whole gzip file ({error}); fetch it again") from None
    return whole.getvalue()


def tar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file in a tar, gzipped or not, in its order; names are relative, without `.` and `//`.

    Raises:
        DataError: it is no whole tar, or a bomb; or a member is not a plain file, has a name that leads out of the
            archive, stands in it twice, or is told from another by letter case alone.
    """
    seen: dict[str, tuple[str, bool]] = {}
    declared = 0
    try:
        with path.open("rb") as packed:
            gzipped = packed.read(2) == b"\x1f\x8b"
        # As a stream: never backwards, so that no header can make the reader go in circles.
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
        raise DataError(f"{path.name}: not a whole tar file ({reason}); fetch it again") from None


def _unsafe(member: tarfile.TarInfo) -> str | None:
    """What is wrong with a member by itself."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or "\\" in member.name or re.match("[A-Za-z]:", member.name):
        return "is an absolute or a Windows path; pack it anew with relative paths and /"
    if ".." in path.parts:
        return "leads out of its folder by '..'; pack it anew with plain paths"
    if member.issparse():
        return "is a sparse file; pack plain files only"
    if not (member.isreg() or member.isdir()):
        return f"is {KINDS.get(member.type, 'no plain file')}; pack plain files only"
    return None


def _clash(member: tarfile.TarInfo, seen: dict[str, tuple[str, bool]]) -> str | None:
    """What is wrong with a member beside those before it.

    Args:
        seen: by name without letter case, how it is spelled and whether it is a file; the member is added.
    """
    path = PurePosixPath(member.name)
    for part, is_file in [(path, not member.isdir()), *((folder, False) for folder in path.parents)]:
        # What a file system takes for the same name that ignores letter case, or how an accent is written.
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", str(part)).casefold())
        if folded not in seen:
            seen[folded] = (str(part), is_file)
            continue
        spelled, was_file = seen[folded]
        if spelled != str(part):
            return f"differs from {spelled!r} in letter case or the form of an accent alone; rename one"
        if is_file or was_file:
            return "stands in it twice; pack it anew"
    return None


def _limit(path: Path) -> int:
    """Bytes that the archive `path` may unpack to."""
    return max(HARMLESS, MAX_GROWTH * path.stat().st_size)


def _bomb(path: Path) -> str:
    return f"unpacks to more than {_limit(path) / 2**20:,.0f} MiB, as a bomb does; pack it anew"


class _Bounded(io.BufferedIOBase):
    """A stream that ends in a refusal where it passes the limit: a header that lies about its size gains nothing."""

    def __init__(self, stream: io.BufferedIOBase, path: Path, name: str) -> None:
        self._stream = stream
        self._left = _limit(path)
        self._refusal = f"{name}: {_bomb(path)}"

    def read(self, size: int | None = -1) -> bytes:
        found = self._stream.read(size)
        self._left -= len(found)
        if self._left < 0:
            raise DataError(self._refusal)
        return found
