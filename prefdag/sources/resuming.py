"""A file that arrives over HTTP, if need be in several answers: a transfer that is cut goes on where it stopped."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO

PART = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class WrongPartError(ConnectionResetError):
    """The server sent another part of the file than the one that was asked for."""


class Partial:
    """The bytes of a file that have come so far.

    They are always of one version of the file, so that a missing pin never becomes the hash of a mixture. The rest is therefore
    only asked for if the server names the version, by a strong ETag or by Last-Modified, and only as long as it is the same
    (If-Range, RFC 9110, section 13.1.5). Otherwise the transfer starts again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._version: str | None = None
        self._most = 0

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
        tag = headers.get("ETag", "")
        self._version = tag if tag.startswith('"') else headers.get("Last-Modified")
        if headers.get("Content-Encoding", "identity") != "identity":
            self._version = None  # unpacked on arrival, so the sizes differ
        return self.path.open("wb")

    def grew(self) -> bool:
        """Whether there is more on disk than at any earlier call."""
        before, self._most = self._most, max(self._most, self.size)
        return self._most > before
