"""A server that speaks OpenAI's protocol: requests within limits of time and size, retries, and replies kept on disk.

The key comes from the environment and goes into one header. It never enters a file, a log or a message.
"""

import hashlib
import json
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry
from urllib3.exceptions import HTTPError

from prefdag.lifecycle.background import in_background, in_parallel
from prefdag.lifecycle.errors import DataError, ParamsError, SourceError
from prefdag.lifecycle.progress import progress
from prefdag.runtime.artifacts import read_json, scratch, write_json, writing

T = TypeVar("T")
Item = TypeVar("Item")

CONNECT_TIMEOUT = 10.0  # seconds
RETRIES = 4
BACKOFF = 1.0  # seconds before the second retry, doubled for each further one
MAX_WAIT = 60  # seconds: the longest Retry-After to obey
MAX_REPLY = 4 * 2**20  # bytes; a longer reply is read no further
RETRIED_STATUS = (408, 429, 500, 502, 503, 504)


class HttpResponse(NamedTuple):
    """What a server sent."""

    status: int
    body: bytes  # empty unless the status is 200
    server: str | None  # its header "Server"
    retry_after: float | None  # seconds


def key_from_environment(variable: str) -> str | None:
    """The key, or None if it is not set, as for a local server. Raises `ParamsError`, without the key in its message."""
    key = os.environ.get(variable, "").strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise ParamsError(
            f"{variable}: contains a space, a line break or another character that keys do not have; set it again"
        )
    return key or None


@dataclass(frozen=True)
class Endpoint:
    """The server. It never gets the same question twice, from this repository or its experiments."""

    name: str  # the key of params.yaml that describes it, such as judge_text.judge
    url: str  # .../v1
    timeout: float  # seconds for a whole reply
    folder: str  # the folder of the scratch folder that keeps its replies
    variable: str  # of the environment, which holds the key
    key: str | None
    stopped: threading.Event = field(default_factory=threading.Event)  # set to ask nothing more
    _asking: defaultdict[Path, threading.Lock] = field(default_factory=lambda: defaultdict(threading.Lock), repr=False)

    def address(self, path: str) -> str:
        return f"{self.url.rstrip('/')}{path}"

    def cache_file(self, path: str, body: Mapping[str, Any], *also: str) -> Path:
        """The file that keeps the reply to a question. Its name is a hash of the address, the request and `also`."""
        request = json.dumps([self.address(path), body, *also], sort_keys=True)
        digest = hashlib.sha256(request.encode()).hexdigest()
        return scratch(self.folder, digest[:2], f"{digest}.json")

    def ask(
        self, session: requests.Session, path: str, body: Mapping[str, Any], read: Callable[[Any], str], *also: str
    ) -> str:
        """The reply to one question, from the cache if it is there.

        Args:
            read: takes what is to be kept from a reply, as `fetch` does.
            also: what else a reply depends on.

        Raises:
            SourceError: as `fetch`.
        """
        file = self.cache_file(path, body, *also)
        with self._asking[file]:  # two questions can be the same
            if (cached := _cached(file)) is not None:
                return cached
            reply = self.fetch(session, path, body, read)
            with writing(file) as temporary:
                write_json(temporary, {"reply": reply})
            return reply

    def fetch(
        self, session: requests.Session, path: str, body: Mapping[str, Any] | None, read: Callable[[Any], T]
    ) -> T:
        """What `read` makes of the JSON that the server answers; without a body, it is a GET.

        A try takes at most `timeout` seconds, however slowly the bytes come.

        Args:
            read: raises `ValueError`, `LookupError` or `TypeError` if the reply has another form.

        Raises:
            SourceError: the server cannot be reached, refuses, or does not speak this protocol, also after retries.
        """
        address = self.address(path)
        status, data, *_ = self.request(session, address, body)
        if status != 200:
            # The message leaves the body out, since it may quote the key.
            raise self.error(address, f"answers with status {status}", self._remedy(status, path))
        try:
            return read(json.loads(data))
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
            raise self.error(address, f"does not answer in the form of {path}", "check url") from None

    def request(self, session: requests.Session, address: str, body: Mapping[str, Any] | None = None) -> HttpResponse:
        """The server's answer after at most `RETRIES` retries. Raises `SourceError` if it cannot be reached."""
        wait = 0.0
        for tried in range(RETRIES + 1):
            if self.stopped.wait(wait):
                raise self.error(address, "was not asked", "another question failed")
            try:
                response = within(self.timeout, lambda: self._request_once(session, address, body))
            except (requests.RequestException, HTTPError, OSError) as error:
                if tried == RETRIES:
                    reason = f"cannot be reached ({_reason(error)})"
                    raise self.error(address, reason, "start it, or check url") from None
                retry_after = None
            else:
                if response.status not in RETRIED_STATUS or tried == RETRIES:
                    break
                retry_after = response.retry_after
            wait = (
                min(retry_after, MAX_WAIT) if retry_after is not None else BACKOFF * 2 ** (tried - 1) if tried else 0.0
            )
        return response

    def for_each(
        self,
        items: Sequence[Item],
        call: Callable[[requests.Session, Item], T],
        parallel: int,
        unit: str,
        name: str,
    ) -> list[T]:
        """`call` of each item, `parallel` of them at once, in the order of the items, with a progress bar.

        Raises:
            SourceError: as `ask`. Replies that arrived are kept, also those to questions asked at the same time.
        """
        self.stopped.clear()
        results: dict[int, T] = {}
        with self.session(parallel) as session, progress(len(items), unit, name) as bar:
            for number, result in in_parallel(items, lambda item: call(session, item), parallel, self.stopped):
                results[number] = result
                bar.update()
        return [results[number] for number in range(len(items))]

    @contextmanager
    def session(self, connections: int = 1) -> Iterator[requests.Session]:
        with requests.Session() as session:
            session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # one reply does not depend on another
            for scheme in ("http://", "https://"):
                session.mount(scheme, HTTPAdapter(pool_connections=1, pool_maxsize=connections))
            yield session

    def error(self, address: str, problem: str, remedy: str) -> SourceError:
        return SourceError(
            f"params.yaml: {self.name}.url: {address} {problem}; {remedy}. "
            "Replies received so far are kept for the next run"
        )

    def _request_once(self, session: requests.Session, address: str, body: Mapping[str, Any] | None) -> HttpResponse:
        end = time.monotonic() + self.timeout
        with session.request(
            "GET" if body is None else "POST",
            address,
            json=body,
            timeout=(min(CONNECT_TIMEOUT, self.timeout), self.timeout),
            auth=self._authorize,
            allow_redirects=False,  # a redirect would send the dialogue to an address that the user did not set
            stream=True,
        ) as response:
            server = response.headers.get("Server")
            if response.status_code != 200:
                return HttpResponse(response.status_code, b"", server, _retry_after(response))
            data = bytearray()
            for part in response.iter_content(65536):
                data += part
                if len(data) > MAX_REPLY:
                    raise self.error(address, f"answers with more than {MAX_REPLY // 2**20} MiB", "check url")
                if time.monotonic() > end:  # nobody waits for it any more
                    raise requests.Timeout
            return HttpResponse(200, bytes(data), server, None)

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Put the key into the header. Used without a key, too, so that requests takes no password from a .netrc."""
        if self.key:
            request.headers["Authorization"] = f"Bearer {self.key}"
        return request

    def _remedy(self, status: int, path: str) -> str:
        return {
            401: f"set {self.variable} to a valid key",
            403: f"set {self.variable} to a key that may use this model",
            404: f"check url (it ends before {path}) and model",
            429: "the server is busy or its quota is used up: wait, then run it again",
        }.get(status, "check url and model, or run it again later")


def within(seconds: float, call: Callable[[], T]) -> T:
    """The result of `call`. Raises `requests.Timeout` after so many seconds; the call may then go on in its thread.

    A timeout of the socket is no limit: it starts again with every byte, and does not cover the look-up of a name.
    """
    try:
        return in_background(call).result(timeout=seconds)
    except TimeoutError:
        raise requests.Timeout from None


def _cached(path: Path) -> str | None:
    """The reply in a file; None if there is none, or a damaged one: it is then asked for again."""
    try:
        reply = read_json(path)["reply"]
    except (DataError, LookupError, TypeError, OSError, RecursionError):
        return None
    return reply if isinstance(reply, str) else None


def _retry_after(response: requests.Response) -> float | None:
    try:
        return Retry().parse_retry_after(response.headers["Retry-After"])
    except (LookupError, HTTPError, ValueError, OverflowError):
        return None


def _reason(error: Exception) -> str:
    """The kind of failure. The library's own message is left out, since it repeats the request."""
    if isinstance(error, requests.Timeout | TimeoutError) or "timed out" in str(error):
        return "timed out"
    return "connection refused" if "refused" in str(error) else type(error).__name__
