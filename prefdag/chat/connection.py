"""A connection of the chat server with limits on time, size and number, so that nobody can keep the others out.

uvicorn limits the time between two requests, but neither the time that a request takes to arrive nor the time that a client
takes to read the answer. Its limit on connections counts half-sent requests too, and then refuses everybody.
"""

import asyncio
import json
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from prefdag.chat.protocol import error_body

HEAD_SECONDS = 10.0  # until the header of a request has arrived
BODY_SECONDS = 20.0  # from there until its body has
READ_SECONDS = 20.0  # that a client may leave a full buffer (64 KiB) of an answer unread
MAX_HEAD = 32 * 1024  # bytes of a header
MAX_CONNECTIONS = 64
MAX_PER_CLIENT = 32  # connections of one address


class Connection(H11Protocol):
    """uvicorn's connection, closed when a limit is reached.

    A new connection beyond `MAX_CONNECTIONS` or `MAX_PER_CLIENT` replaces the one that has waited for its client the longest:
    for a request, for the rest of one, or until it reads. It is refused if an answer is in progress on all of them.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._timer: asyncio.TimerHandle | None = None
        self._phase: str | None = None
        self._waits_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room for the connection, or refuse it."""
        super().connection_made(transport)
        self._watch()
        for others, limit in ((self._of_client(), MAX_PER_CLIENT), (self._open(), MAX_CONNECTIONS)):
            if len(others) <= limit:
                continue
            waiting = [other for other in others if other is not self and other._phase is not None]
            if waiting:
                min(waiting, key=lambda other: other._waits_since)._refuse(
                    503, "too many connections; this one waited for its client the longest"
                )
            else:
                self._refuse(503, "too many connections; try again later")
                return

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        super().connection_lost(exc)
        self._set_phase(None)

    def data_received(self, data: bytes) -> None:
        """Take what arrived, and restart the clock if this completed a header or a body."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._set_phase(None)
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """Start the clock for a client that does not read."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """Stop it."""
        super().resume_writing()
        self._watch()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, also if its client never reads the rest of the last answer."""
        super().timeout_keep_alive_handler()
        self._abort_later()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP request, in the form of the API's errors."""
        status = getattr(sys.exception(), "error_status_hint", 400)
        self._refuse(
            status, f"the header has more than {MAX_HEAD} bytes" if status == 431 else "not a valid HTTP request"
        )

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """There are no web sockets; `ws="none"` keeps uvicorn from calling this."""
        self._refuse(400, "web sockets are not supported")

    def _open(self) -> "list[Connection]":
        return [other for other in self.connections if isinstance(other, Connection)]

    def _of_client(self) -> "list[Connection]":
        host = self.client and self.client[0]
        return [other for other in self._open() if (other.client and other.client[0]) == host]

    def _watch(self) -> None:
        """Set the clock to what the connection waits for now. Bytes that complete nothing do not restart it."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if self.transport.is_closing():
            self._set_phase(None)
        elif self.conn.their_state is h11.SEND_BODY:
            self._set_phase("body", BODY_SECONDS)
        elif self.flow.write_paused:
            self._set_phase("read", READ_SECONDS)
        elif not answering:
            self._set_phase("head", HEAD_SECONDS)
        else:
            self._set_phase(None)

    def _set_phase(self, phase: str | None, seconds: float = 0.0) -> None:
        if phase == self._phase:
            return
        if self._timer:
            self._timer.cancel()
        self._phase, self._timer = phase, None
        if phase is not None:
            self._waits_since = self.loop.time()
            self._timer = self.loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        if self._phase == "read":
            self.transport.abort()
        else:
            limit = HEAD_SECONDS if self._phase == "head" else BODY_SECONDS
            self._refuse(408, f"the {self._phase} of the request did not arrive within {limit:g} s")

    def _refuse(self, status: int, message: str) -> None:
        """Answer with an error, unless an answer has begun, and close the connection."""
        self._set_phase(None)
        self._unset_keepalive_if_required()
        self.connections.discard(self)
        if self.cycle is not None and not self.cycle.response_complete:
            started = self.cycle.response_started
            self.cycle.disconnected = True  # the application sees a client that left
            self.cycle.message_event.set()
        else:
            started = False
        if started:
            self.transport.abort()
            return
        kind = "server_error" if status == 503 else "invalid_request_error"
        body = json.dumps(error_body(message, kind)).encode()
        head = (
            f"HTTP/1.1 {status} {STATUS_PHRASES[status].decode()}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
        self._abort_later()

    def _abort_later(self) -> None:
        """A closed transport first sends what it still has; do not wait for that forever."""
        self.loop.call_later(READ_SECONDS, self.transport.abort)
