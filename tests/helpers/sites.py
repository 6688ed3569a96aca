"""A web server on the loopback interface that can stumble."""

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Site(ThreadingHTTPServer):
    """Pages by path. `cut` names paths whose transfer breaks off half-way so many times; `fail` those that answer 503.

    `parts` is whether the server knows Range; `version` makes the headers that name the version of a file from its content.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, tuple[bytes, str]] = {}
        self.cut: Counter[str] = Counter()
        self.fail: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.asked: list[tuple[str, str]] = []  # path with query, and the Authorization header
        self.parts = True
        self.ranges: list[str] = []  # the Range headers of the requests that have one
        self.version: Callable[[bytes], dict[str, str]] = lambda content: {"ETag": tag(content)}
        self.sent = 0  # bytes of all bodies

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def offer(self, package: str, **files: bytes) -> None:
        """A project page in the HTML form of the simple API, without hashes, and its files."""
        links = ""
        for name, content in files.items():
            self.pages[f"/files/{name}"] = content, "application/octet-stream"
            links += f'<a href="/files/{name}">{name}</a>'
        self.pages[f"/simple/{package}/"] = f"<!DOCTYPE html><html><body>{links}</body></html>".encode(), "text/html"


def tag(content: bytes) -> str:
    """A strong ETag."""
    return f'"{hashlib.sha1(content).hexdigest()}"'


@contextmanager
def serving() -> Iterator[Site]:
    """A site that answers while the block runs."""
    server = Site()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.seen[path] += 1
        self.server.asked.append((self.path, self.headers.get("Authorization", "")))
        if path not in self.server.pages:
            return self.send_error(404)
        if self.server.fail[path] > 0:
            self.server.fail[path] -= 1
            return self.send_error(503)
        content, kind = self.server.pages[path]
        version, size, start = self.server.version(content), len(content), 0
        if asked := self.headers.get("Range"):
            self.server.ranges.append(asked)
            if self.server.parts and self.headers.get("If-Range") in {None, *version.values()}:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= size > 0:
            return self.send_error(416)
        content = content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for name, value in version.items():
            self.send_header(name, value)
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "HEAD":
            return None
        if self.server.cut[path] > 0:
            self.server.cut[path] -= 1
            content = content[: len(content) // 2]
        self.server.sent += len(content)
        self.wfile.write(content)
        return None

    do_HEAD = do_GET  # noqa: N815 - http.server calls it so

    def log_message(self, *_: object) -> None:
        """Quiet."""
