"""A Hugging Face hub on this machine: the few requests that an upload makes. It takes any token but "refused"."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Hub:
    """Repositories by id: whether they are private, and their files. `tokens` has those that were sent."""

    url: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    commits: int = 0


@contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

        def answer(self, status: int, body: Any) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def refused(self) -> bool:
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            hub.tokens.add(token)
            if token == "refused":
                self.body()
                self.answer(401, {"error": f"Invalid token {token}"})
            return token == "refused"

        def do_GET(self) -> None:
            if self.refused():
                return
            repo = self.path.removeprefix("/api/models/").partition("/revision/")[0]
            self.answer(200, {"id": repo, "private": hub.private[repo], "sha": COMMIT, "siblings": [], "tags": []})

        def do_POST(self) -> None:
            if self.refused():
                return
            content = self.body()
            if self.path == "/api/validate-yaml":  # of the README
                self.answer(200, {"errors": [], "warnings": []})
                return
            if self.path == "/api/repos/create":
                made = json.loads(content)
                repo = "/".join(filter(None, (made.get("organization"), made["name"])))
                if repo in hub.private:
                    self.answer(409, {"error": "exists", "url": f"{hub.url}/{repo}"})
                    return
                hub.private[repo] = made.get("private", made.get("visibility") == "private")
                hub.files[repo] = {}
                self.answer(200, {"url": f"{hub.url}/{repo}", "name": repo})
                return
            repo, _, verb = self.path.removeprefix("/api/models/").removesuffix("/main").rpartition("/")
            if verb == "preupload":
                paths = [each["path"] for each in json.loads(content)["files"]]
                regular = [
                    {"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for path in paths
                ]
                self.answer(200, {"files": regular})
                return
            assert verb == "commit", self.path
            for line in content.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    hub.files[repo][item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            hub.commits += 1
            self.answer(200, {"success": True, "commitOid": COMMIT, "commitUrl": f"{hub.url}/{repo}/commit/{COMMIT}"})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
