"""Protects a server on the loopback address from other sites in the user's browser, and restricts what its own page may do.

The loopback address alone is no protection. A page of any site can post to it, so only JSON from our own origin is accepted.
And a site can point its own name at 127.0.0.1 to become the same origin (DNS rebinding), so Host must be one of `HOSTS`.
"""

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefdag.chat.protocol import error_body

HOSTS = ["127.0.0.1", "localhost"]
MAX_BODY = 256 * 1024  # bytes
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


class Guard:
    """ASGI middleware that refuses requests by `refusal`, and adds `HEADERS` to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if refused := refusal(scope["method"], Headers(scope=scope)):
            status, reason = refused
            await JSONResponse(error_body(reason), status)(scope, receive, with_headers)
        else:
            await self.app(scope, receive, with_headers)


def refusal(method: str, headers: Headers) -> tuple[int, str] | None:
    """The status and the reason of a refusal, None if the request is acceptable. Its Host has been checked before."""
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{headers.get('host')}":
        return 403, "requests from other sites are refused"
    if method != "POST":
        return None
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return 415, "send JSON, with Content-Type: application/json"
    length = headers.get("content-length", "")
    # The server enforces the announced length, except for chunked bodies.
    if not length.isdecimal() or "transfer-encoding" in headers:
        return 411, "send a Content-Length"
    if int(length) > MAX_BODY:
        return 413, f"the request has {length} bytes, the limit is {MAX_BODY}; shorten the conversation"
    return None
