"""The chat server on a port of its own, for tests."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from prefdag.chat.server import bind, configuration


@contextmanager
def serving(app: FastAPI) -> Iterator[int]:
    """Serve the application from a thread, with the limits of the real server. Yields the port."""
    listening = bind(0)
    server = uvicorn.Server(configuration(app))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join(timeout=30)
