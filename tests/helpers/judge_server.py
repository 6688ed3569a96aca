"""A fake server that judges."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Reply = Callable[[dict[str, Any]], tuple[int, Any]]


def completion(text: str | None) -> tuple[int, Any]:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}


def prefers(word: str) -> Reply:
    """A judge that prefers the answer with this word; if neither has it, it is a tie."""

    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        first, second = body["messages"][-1]["content"].split("[Start of Assistant B's response")
        return completion(f"I think ... [[{'A' if word in first else 'B' if word in second else 'C'}]]")

    return reply


class Server:
    """A fake server that answers with `reply`; `asked`, `headers` and `paths` record the requests."""

    def __init__(self) -> None:
        self.reply: Reply = prefers("rose")
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append(body)
                outer.headers.append(dict(self.headers))
                outer.paths.append(self.path)
                status, value = outer.reply(body)
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                if 300 <= status < 400:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    @contextmanager
    def running(self) -> Iterator["Server"]:
        Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        yield self
        self.http.shutdown()
        self.http.server_close()
