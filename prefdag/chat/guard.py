"""What keeps other sites in the user's browser away from a server on the loopback address, and its pages harmless.

The address alone does not: a page of any site can post to it (so: JSON from our own origin alone), and a name that its owner
points at 127.0.0.1 turns that page into "the same origin" (so: only our own names as Host).
"""

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefdag.chat.protocol import failure

HOSTS = ["127.0.0.1", "localhost"]
MAX_BODY = 256 * 1024  # bytes
HEADERS = {
    # Scripts and styles are files of ours; with trusted types, no script of the page can turn text into markup.
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
    """ASGI middleware: refuses what no page of ours and no client program sends; adds `HEADERS` to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if refused := refusal(scope["method"], Headers(scope=scope)):
            status, reason = refused
            await JSONResponse(failure(reason), status)(scope, receive, with_headers)
        else:
            await self.app(scope, receive, with_headers)


def refusal(method: str, headers: Headers) -> tuple[int, str] | None:
    """Status and reason, None where there is nothing against a request. Its Host has been checked."""
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{headers.get('host')}":
        return 403, "requests from other sites are refused"
    if method != "POST":
        return None
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return 415, "send JSON, with Content-Type: application/json"
    length = headers.get("content-length", "")
    # The server holds a body to the length that it announces, unless it comes in chunks.
    if not length.isdecimal() or "transfer-encoding" in headers:
        return 411, "send a Content-Length"
    if int(length) > MAX_BODY:
        return 413, f"the request has {length} bytes, and at most {MAX_BODY} are taken; shorten the conversation"
    return None
