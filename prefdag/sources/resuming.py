"""A file that arrives over HTTP, if need be in several answers: a transfer that is cut goes on where it stopped.

So does one whose process was killed, since what has come is kept outside the stage's outs, which DVC deletes before a stage
runs.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from filelock import FileLock, Timeout

from prefdag.runtime.artifacts import remove, scratch

PART = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


@contextmanager
def kept_transfer(source: object) -> Iterator[Path]:
    """Yield a folder for what comes from `source`, a section of params.yaml. It is removed when the block succeeds.

    What has come before an error or a kill is still there for the next run. While another process has the folder, a temporary
    one takes its place.
    """
    folder = scratch("downloads", hashlib.sha256(repr(source).encode()).hexdigest()[:16])
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch("locks").mkdir(exist_ok=True)
    lock = FileLock(scratch("locks", f"download-{folder.name}.lock"), timeout=0)
    with ExitStack() as stack:
        try:
            stack.enter_context(lock)
            folder.mkdir(exist_ok=True)
        except Timeout:
            folder = Path(stack.enter_context(TemporaryDirectory(dir=folder.parent)))
        try:
            yield folder
            remove(folder)
        finally:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


class WrongPartError(ConnectionResetError):
    """The server sent another part of the file than the one that was asked for."""


class Partial:
    """The bytes of a file that have come so far.

    They are always of one version of the file, so that a missing pin never becomes the hash of a mixture. The rest is therefore
    only asked for if the server names the version, by a strong ETag or by Last-Modified, and only as long as it is the same
    (If-Range, RFC 9110, section 13.1.5). Otherwise the transfer starts again. A file beside `path` keeps the version for
    another process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._note = path.with_name(f"{path.name}.version")
        self._most = self.size

    @property
    def _version(self) -> str | None:
        return self._note.read_text("utf-8") if self._note.exists() else None

    @_version.setter
    def _version(self, version: str | None) -> None:
        if version is None:
            self._note.unlink(missing_ok=True)
        else:
            self._note.write_text(version, "utf-8")

    @property
    def size(self) -> int:
        """The number of bytes on disk."""
        return self.path.stat().st_size if self.path.exists() else 0

    def headers(self) -> dict[str, str]:
        """The headers of the next request."""
        # Otherwise a server may pack the file for the transfer, and the client would unpack a .gz file on arrival.
        headers = {"Accept-Encoding": "identity"}
        if self.size and self._version:
            headers |= {"Range": f"bytes={self.size}-", "If-Range": self._version}
        return headers

    def beyond(self, status: int) -> bool:
        """Whether the server answers that nothing lies beyond what has come. If so, the next request is for the whole file."""
        if status != 416 or not self._version:
            return False
        self._version = None
        return True

    def open(self, status: int, headers: Mapping[str, str]) -> IO[bytes]:
        """Open the file for the body of an answer: at its end for the rest, and empty for a whole file.

        Args:
            status: 206 for the rest; any other says that the body is the whole file, so also from a server that knows no Range.
            headers: of the answer, in any letter case.

        Raises:
            WrongPartError: the body starts elsewhere. The next request is for the whole file.
        """
        if status == 206:
            part = PART.fullmatch(headers.get("Content-Range", "").strip())
            if part is None or int(part[1]) != self.size:
                self._version = None
                raise WrongPartError("the server sent another part of the file than was asked for")
            return self.path.open("ab")
        stream = self.path.open("wb")  # empties it before the version is noted: a kill in between mixes nothing
        tag = headers.get("ETag", "")
        packed = headers.get("Content-Encoding", "identity") != "identity"  # unpacked on arrival, so the sizes differ
        self._version = None if packed else tag if tag.startswith('"') else headers.get("Last-Modified")
        return stream

    def grew(self) -> bool:
        """Whether there is more on disk than at any earlier call."""
        before, self._most = self._most, max(self._most, self.size)
        return self._most > before
