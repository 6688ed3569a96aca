"""Protects a server on the loopback address from other sites in the user's browser, and restricts what its own page may do.

The loopback address alone is no protection. A page of any site can post to it, so only JSON from our own origin is accepted.
And a site can point its own name at 127.0.0.1 to become the same origin (DNS rebinding), so Host must be one of `HOSTS`.

It also limits how many requests wait for an answer, in total and per client.
"""

import logging
import re
from collections import Counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefdag.chat.protocol import error_body

HOSTS = ("127.0.0.1", "localhost")
MAX_BODY = 256 * 1024  # bytes
MAX_WAITING = 24  # requests in progress; answers come one at a time
MAX_WAITING_PER_CLIENT = 16  # of one address
HEADERS = {
    # Scripts and styles come from our files only. With trusted types, no script can turn text into markup.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_HOST = re.compile(rf"({'|'.join(map(re.escape, HOSTS))})(:[0-9]{{1,5}})?")
log = logging.getLogger(__name__)


class Guard:
    """ASGI middleware that refuses requests by `refusal` and by their number, and adds `HEADERS` to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._waiting: Counter[str] = Counter()  # requests in progress by client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            if refused := refusal(scope["method"], Headers(scope=scope)):
                status, reason = refused
                await JSONResponse(error_body(reason), status)(scope, receive, with_headers)
            elif scope["method"] == "POST":
                await self._post(scope, receive, with_headers)
            else:
                await self.app(scope, receive, with_headers)
        except Exception:
            log.exception("a request failed")
            if started:
                raise
            body = error_body("the request failed; see the server's terminal for the reason", "server_error")
            await JSONResponse(body, 500)(scope, receive, with_headers)

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request with a body once the body is complete: a half-sent one takes nobody's place."""
        body = await _body(receive)
        if body is None:  # the client left
            return
        client = (scope.get("client") or ("",))[0]
        if self._waiting[client] >= MAX_WAITING_PER_CLIENT or self._waiting.total() >= MAX_WAITING:
            error = error_body("too many requests wait for an answer; try again later", "rate_limit_error")
            await JSONResponse(error, 429, {"Retry-After": "5"})(scope, receive, send)
            return
        rest = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            return next(rest, None) or await receive()

        self._waiting[client] += 1
        try:
            await self.app(scope, replay, send)
        finally:
            self._waiting[client] -= 1
            self._waiting += Counter()  # forget clients with none


async def _body(receive: Receive) -> bytes | None:
    """The whole body, whose length was checked; None if the client disconnected before its end."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def refusal(method: str, headers: Headers) -> tuple[int, str] | None:
    """The status and the reason of a refusal, None if the request is acceptable."""
    host = headers.get("host", "")
    if not _HOST.fullmatch(host):
        return 400, f"the server answers only to the names {' and '.join(HOSTS)}"
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return 403, "requests from other sites are refused"
    if method != "POST":
        return None
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return 415, "send JSON, with Content-Type: application/json"
    length = headers.get("content-length", "")
    # The server enforces the announced length, except for chunked bodies.
    if not (length.isascii() and length.isdecimal()) or "transfer-encoding" in headers:
        return 411, "send a Content-Length"
    if len(length) > 9 or int(length) > MAX_BODY:
        return 413, f"the request has {length[:20]} bytes, the limit is {MAX_BODY}; shorten the conversation"
    return None
