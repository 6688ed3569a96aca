"""The page and the API of `prefdag chat --web`: FastAPI on the loopback address, one answer at a time.

GET  /                        the page, an ordinary client of the API
GET  /v1/models               reference and policy
POST /v1/chat/completions     as in OpenAI's API, streamed or not

Every error has OpenAI's form, `{"error": {"message", "type", "param", "code"}}`.
"""

import asyncio
import itertools
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from jinja2 import Environment, FileSystemLoader
from starlette.exceptions import HTTPException

from prefdag.chat.connection import MAX_HEAD, Connection
from prefdag.chat.guard import Guard
from prefdag.chat.protocol import MAX_NEW_TOKENS, CompletionRequest, chunk, completion, error_body, token_usage
from prefdag.lifecycle.errors import DataError, PrefdagError

if TYPE_CHECKING:
    from prefdag.chat.dialogue import ChatModels, Prompt

PAGE = Path(__file__).parent / "page"
FILES = {"chat.css": "text/css", "chat.js": "text/javascript", "icon.svg": "image/svg+xml"}
FAILED = "the answer failed; see the server's terminal for the reason"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnswerEnd:
    """How an answer ended."""

    tokens: int
    reason: str  # stop: the model ended it; length: it reached the maximum length


class AnswerQueue:
    """Answers requests one at a time, in the order of their arrival. Parallel answers would only slow each other down."""

    def __init__(self, chat: "ChatModels") -> None:
        self.chat = chat
        self.worker = ThreadPoolExecutor(1)

    async def pieces(
        self, request: CompletionRequest, prompt: "Prompt", max_new_tokens: int
    ) -> AsyncGenerator[str | AnswerEnd]:
        """An answer as it is generated, and its end. When the caller stops iterating, the model stops at its next token."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[str | AnswerEnd | Exception] = asyncio.Queue()
        cancelled = threading.Event()

        def put(piece: str | AnswerEnd | Exception) -> bool:
            if not cancelled.is_set() and piece:
                loop.call_soon_threadsafe(queue.put_nowait, piece)
            return not cancelled.is_set()

        def answer() -> None:
            if cancelled.is_set():  # while it waited in the queue
                return
            try:
                tokens, ended = self.chat.models[request.model](
                    prompt.ids,
                    put,
                    max_new_tokens=max_new_tokens,
                    temperature=request.temperature,
                    seed=request.seed,
                )
                put(AnswerEnd(tokens, "stop" if ended else "length"))
            except Exception as error:
                put(error)

        self.worker.submit(answer)
        try:
            while True:
                piece = await queue.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if isinstance(piece, AnswerEnd):
                    return
        finally:
            cancelled.set()


def guarded_app(title: str, files: Mapping[str, str]) -> FastAPI:
    """An application behind `Guard`, whose errors have one form.

    Args:
        files: media types of the files in `PAGE` that it serves, by name.
    """
    # FastAPI's documentation pages are off, since they load scripts from another host.
    app = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard)  # outermost, so that every response has its headers

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            message = f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}"
            return JSONResponse(error_body(_line(message)), 400)
        where = ".".join(map(str, first["loc"][1:]))
        message = ": ".join(filter(None, [where, first["msg"]]))
        return JSONResponse(error_body(_line(message), param=_line(where) or None), 400)

    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> JSONResponse:
        """Whatever the frameworks refuse: unknown paths and methods, bodies that are not JSON."""
        messages = {404: "not found", 405: f"{request.method[:20]} is not possible here", 400: "the body is not JSON"}
        message = messages.get(error.status_code, str(error.detail))
        return JSONResponse(error_body(_line(message)), error.status_code, error.headers)

    @app.get("/{name}")
    async def file(name: str) -> Response:
        if name not in files:
            return JSONResponse(error_body("not found"), 404)
        return Response((PAGE / name).read_bytes(), media_type=files[name])

    return app


def make_app(chat: "ChatModels", max_new_tokens: int) -> FastAPI:
    """The application.

    Args:
        max_new_tokens: the longest answer to a request that does not set a limit.
    """
    app = guarded_app("prefdag chat", FILES)
    answers = AnswerQueue(chat)
    numbers = itertools.count(1)
    environment = Environment(loader=FileSystemLoader(PAGE), autoescape=True)
    page = environment.get_template("index.html").render(max_new_tokens=max_new_tokens, limit=MAX_NEW_TOKENS)

    @app.exception_handler(PrefdagError)
    async def refused(_: Request, error: PrefdagError) -> JSONResponse:
        code = "context_length_exceeded" if isinstance(error, DataError) else None
        return JSONResponse(error_body(str(error), param="messages", code=code), 400)

    @app.get("/")
    async def index() -> Response:
        return Response(page, media_type="text/html")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "prefdag"} for name in chat.models]
        return {"object": "list", "data": listed}

    @app.post("/v1/chat/completions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        if body.model not in chat.models:
            known = " or ".join(chat.models)
            message = f"model: unknown model {body.model[:80]!r}; choose {known}"
            return JSONResponse(error_body(message, param="model", code="model_not_found"), 404)
        limit = body.max_completion_tokens or body.max_tokens or max_new_tokens
        prompt = await asyncio.to_thread(chat.prompt, body.dialogue, limit)
        head = {
            "id": f"chatcmpl-{next(numbers)}",
            "created": int(time.time()),
            "model": body.model,
            "left_out": prompt.left_out,
        }
        pieces = answers.pieces(body, prompt, limit)
        if body.stream:
            return StreamingResponse(_events(body, prompt, head, pieces), media_type="text/event-stream")
        return await _whole(prompt, head, pieces, request)

    return app


async def _events(
    body: CompletionRequest, prompt: "Prompt", head: dict[str, Any], pieces: AsyncGenerator[str | AnswerEnd]
) -> AsyncIterator[str]:
    """Server-sent events: the role, the pieces, the end, and the token counts if requested."""
    try:
        async with aclosing(pieces):
            yield _event(chunk(head, {"role": "assistant", "content": ""}))
            async for piece in pieces:
                if isinstance(piece, str):
                    yield _event(chunk(head, {"content": piece}))
                    continue
                yield _event(chunk(head, {}, piece.reason))
                if body.include_usage:
                    usage = token_usage(len(prompt.ids), piece.tokens)
                    yield _event({**chunk(head, {}), "choices": [], "usage": usage})
        yield "data: [DONE]\n\n"
    except Exception:
        log.exception("an answer failed")
        yield _event(error_body(FAILED, "server_error"))


async def _whole(
    prompt: "Prompt", head: dict[str, Any], pieces: AsyncGenerator[str | AnswerEnd], request: Request
) -> JSONResponse:
    """The whole answer in one response. Generation stops at the next token if the client disconnects."""
    text = ""
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                if isinstance(piece, AnswerEnd):
                    usage = token_usage(len(prompt.ids), piece.tokens)
                    return JSONResponse(completion(head, text, piece.reason, usage))
                text += piece
                if await request.is_disconnected():
                    break
    except Exception:
        log.exception("an answer failed")
    return JSONResponse(error_body(FAILED, "server_error"), 500)


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def bind(port: int) -> socket.socket:
    """A listening socket on the loopback address. Raises `PrefdagError` if the port is not available."""
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise PrefdagError(f"port {port}: {os.strerror(error.errno or 0)}; choose another port with --port") from None


class Server(uvicorn.Server):
    """A server that exits at the first Ctrl-C."""

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Exit at once: there is nothing to save, and a model that processes a long prompt cannot be interrupted."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def configuration(app: FastAPI) -> uvicorn.Config:
    """How the application is served: with the limits of `connection`."""
    return uvicorn.Config(
        app,
        http=Connection,
        h11_max_incomplete_event_size=MAX_HEAD,
        log_level="error",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
    )


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Serve until Ctrl-C ends the process."""
    Server(configuration(app)).run([listening])


def _line(message: str) -> str:
    """The message on one line, with escapes for what cannot be printed."""
    return str(PrefdagError(message))
