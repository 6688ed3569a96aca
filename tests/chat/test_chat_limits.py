"""Limits of the chat server on time, size and number, against clients that send half a request, or read half an answer."""

import contextlib
import json
import logging
import random
import socket
import string
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from chat_models import byte_tokenizer, stand_ins
from chat_server import serving
from fastapi.testclient import TestClient

from prefdag.chat import connection, guard
from prefdag.chat.dialogue import ChatModels
from prefdag.chat.server import make_app

pytestmark = pytest.mark.slow

COMPLETIONS = "/v1/chat/completions"
HEAD = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
OTHER = "127.0.0.2"  # the whole of 127.0.0.0/8 is this machine on Linux


def asking(text: str = "Hi", **changes: Any) -> dict[str, Any]:
    return {"model": "policy", "messages": [{"role": "user", "content": text}], **changes}


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    with serving(make_app(stand_ins(tmp_path, {"policy": "fine"}), 64)) as port:
        yield port


def connect(port: int, source: str = "127.0.0.1") -> socket.socket:
    try:
        opened = socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(source, 0))
    except OSError:
        if source == OTHER:
            pytest.skip("needs a second loopback address")
        raise
    return opened


def everything(stream: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := stream.recv(65536):
            parts.append(part)
    return b"".join(parts)


def exchange(port: int, data: bytes, end: bool = True) -> tuple[int, bytes]:
    """The status and the body of the answer to raw bytes; status 0 if there is none.

    Args:
        end: whether to tell the server that no more bytes come. It then takes the client for gone.
    """
    with connect(port) as stream:
        with contextlib.suppress(OSError):
            stream.sendall(data)
            if end:
                stream.shutdown(socket.SHUT_WR)
        answer = everything(stream)
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split(b" ", 2)[1]) if head else 0), body


def check_error(body: bytes) -> dict[str, Any]:
    """The error in a body, which must have OpenAI's form, on one line and with all four keys."""
    (name,) = (value := json.loads(body))
    error: dict[str, Any] = value[name]
    assert name == "error"
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "\n" not in error["message"]
    assert error["type"] in {"invalid_request_error", "server_error", "rate_limit_error"}
    return error


def answer(port: int, source: str | None = None) -> httpx.Response:
    transport = httpx.HTTPTransport(local_address=source)
    with httpx.Client(transport=transport, timeout=10, trust_env=False) as client:
        return client.post(f"http://127.0.0.1:{port}{COMPLETIONS}", json=asking())


HALVES = {
    "nothing": b"",
    "half a header": HEAD.encode(),
    "half a line": b"POS",
    "half a body": f"{HEAD}Content-Length: 100\r\n\r\n{{".encode(),
    "a whole request, then half of one": b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET ",
}


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_half_sent_requests_keep_nobody_out(half: bytes, port: int) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(3 * connection.MAX_CONNECTIONS):
            stream = stack.enter_context(connect(port))
            stream.sendall(half)
        start = time.monotonic()
        for _ in range(5):
            assert answer(port).status_code == 200
        assert time.monotonic() - start < 5


def test_the_longest_waiting_connection_makes_room_and_is_told(port: int) -> None:
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(connect(port)) for _ in range(connection.MAX_PER_CLIENT + 1)]
        streams[0].settimeout(5)
        head, _, body = everything(streams[0]).partition(b"\r\n\r\n")
        assert b" 503 " in head
        assert "too many connections" in check_error(body)["message"]
        streams[1].settimeout(0.2)
        with pytest.raises(TimeoutError):
            streams[1].recv(1)


def test_one_client_does_not_use_up_the_connections_of_another(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_PER_CLIENT", 4)
    with contextlib.ExitStack() as stack:
        mine = stack.enter_context(connect(port, OTHER))
        mine.sendall(b"GET /v1/models HTTP/1.1\r\n")
        for _ in range(100):
            stack.enter_context(connect(port)).sendall(b"GET ")
        mine.sendall(f"Host: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        assert b" 200 " in everything(mine)


DRIPS = {
    "head": (b"", b"G", "the head of the request did not arrive within 0.4 s"),
    "header": (HEAD.encode(), b"X", "the head of the request did not arrive within 0.4 s"),
    "body": (
        f"{HEAD}Content-Length: 1000\r\n\r\n".encode(),
        b" ",
        "the body of the request did not arrive within 0.4 s",
    ),
}


@pytest.mark.parametrize(("begin", "drop", "message"), DRIPS.values(), ids=DRIPS)
def test_a_request_that_drips_is_refused_in_time(
    begin: bytes, drop: bytes, message: str, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.4)
    monkeypatch.setattr(connection, "BODY_SECONDS", 0.4)
    with connect(port) as stream:
        start = time.monotonic()
        stream.sendall(begin)
        stream.settimeout(0.05)
        answer = b""
        while not answer and time.monotonic() - start < 10:
            with contextlib.suppress(OSError):
                stream.sendall(drop)
            with contextlib.suppress(TimeoutError):
                answer = stream.recv(65536)
        assert time.monotonic() - start < 3
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b" 408 " in head
        assert check_error(body)["message"] == message


def test_an_idle_connection_is_closed(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.3)
    with connect(port) as stream:
        assert b" 408 " in everything(stream)


def test_a_client_that_does_not_read_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is far longer than what the system buffers. The next client is answered meanwhile."""
    monkeypatch.setattr(connection, "READ_SECONDS", 1.0)

    def long(
        prompt_ids: Sequence[int], listener: Callable[[str], bool], *, max_new_tokens: int, **_: Any
    ) -> tuple[int, bool]:
        for number in range(max_new_tokens):
            if not listener("x" * 100_000):
                return number, False
        return max_new_tokens, True

    app = make_app(ChatModels({"policy": long}, byte_tokenizer(tmp_path), None), 2)
    with serving(app) as port, contextlib.ExitStack() as stack:
        body = json.dumps(asking(stream=True, max_tokens=300)).encode()
        request = f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body
        streams = [stack.enter_context(connect(port)) for _ in range(guard.MAX_WAITING_PER_CLIENT)]
        for stream in streams:
            stream.sendall(request)
        time.sleep(0.2)
        start = time.monotonic()
        while (status := answer(port).status_code) != 200 and time.monotonic() - start < 20:
            assert status == 429
            time.sleep(0.2)
        assert status == 200
        received = everything(streams[0])
        assert 0 < len(received) < 300 * 100_000
        assert b"[DONE]" not in received


def test_waiting_answers_are_limited_per_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_WAITING_PER_CLIENT", 3)
    go, arrived = threading.Event(), threading.Semaphore(0)
    prompt = ChatModels.prompt

    def arriving(*arguments: Any) -> Any:
        arrived.release()
        return prompt(*arguments)

    monkeypatch.setattr(ChatModels, "prompt", arriving)

    def waiting(prompt_ids: Sequence[int], listener: Callable[[str], bool], **_: Any) -> tuple[int, bool]:
        assert go.wait(timeout=60)
        listener("x")
        return 1, True

    app = make_app(ChatModels({"policy": waiting}, byte_tokenizer(tmp_path), None), 4)
    statuses: list[int] = []
    with serving(app) as port:
        connect(port, OTHER).close()
        first = [threading.Thread(target=lambda: statuses.append(answer(port).status_code)) for _ in range(3)]
        for thread in first:
            thread.start()
        for _ in first:
            assert arrived.acquire(timeout=20)
        refused = answer(port)
        assert refused.status_code == 429
        assert check_error(refused.content)["type"] == "rate_limit_error"
        assert refused.headers["retry-after"] == "5"
        assert httpx.get(f"http://127.0.0.1:{port}/v1/models", trust_env=False).status_code == 200
        other = threading.Thread(target=lambda: statuses.append(answer(port, OTHER).status_code))
        other.start()
        assert arrived.acquire(timeout=20)
        go.set()
        for thread in (*first, other):
            thread.join(timeout=30)
        assert statuses == [200] * 4
        assert answer(port).status_code == 200


def with_head(*lines: str) -> bytes:
    return "\r\n".join(("GET / HTTP/1.1", "Host: 127.0.0.1", *lines, "", "")).encode()


@pytest.mark.parametrize(
    ("data", "statuses"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n", {400}),  # TLS
        (b"GET / HTTP/9.9\r\n\r\n", {400, 505}),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n", {400}),
        (b"GET / HTTP/1.1\r\n\r\n", {400}),
        (with_head("X: " + "a" * 1_000_000), {431}),
        (with_head(*(f"X-{i}: a" for i in range(20_000))), {431}),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", {404, 431}),
        (f"{HEAD}Content-Length: 99999999999\r\n\r\n".encode(), {413}),
        (f"{HEAD}Content-Length: {'9' * 5000}\r\n\r\n".encode(), {400, 413}),
        (f"{HEAD}Content-Length: -1\r\n\r\n".encode(), {400}),
        (f"{HEAD}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd".encode(), {400}),
        (f"{HEAD}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode(), {411}),
        (f"{HEAD}Transfer-Encoding: gzip\r\n\r\n".encode(), {400, 411, 501}),
    ],
)
def test_hostile_headers_are_refused_in_the_form_of_the_api(data: bytes, statuses: set[int], port: int) -> None:
    status, body = exchange(port, data)
    assert status in statuses
    if status != 200:
        check_error(body)
    assert answer(port).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/a/b/c", 404),
        ("GET", "/v1/models/policy", 404),
        ("POST", "/", 405),
        ("POST", "/v1/embeddings", 404),
        ("PUT", COMPLETIONS, 405),
        ("DELETE", "/v1/models", 405),
        ("GET", COMPLETIONS, 405),
        ("TRACE", "/", 405),
        ("BREW", "/", 405),
    ],
)
def test_every_route_and_method_fails_in_the_form_of_the_api(
    method: str, path: str, status: int, tmp_path: Path
) -> None:
    client = TestClient(make_app(stand_ins(tmp_path, {"policy": "fine"}), 64), base_url="http://127.0.0.1")
    response = client.request(method, path, json={})
    assert response.status_code == status
    check_error(response.content)


def test_the_error_names_the_field_and_its_kind(tmp_path: Path) -> None:
    client = TestClient(make_app(stand_ins(tmp_path, {"policy": "fine"}, window=100), 64), base_url="http://127.0.0.1")

    def error(value: Any) -> tuple[Any, Any]:
        found = check_error(client.post(COMPLETIONS, json=value).content)
        return found["param"], found["code"]

    assert error(asking(model="gpt-4")) == ("model", "model_not_found")
    assert error(asking("a" * 500)) == ("messages", "context_length_exceeded")
    assert error(asking(messages=[{"role": "tool", "content": ""}])) == ("messages.0.role", None)
    assert error(asking(temperature="hot")) == ("temperature", None)
    assert error([]) == (None, None)


def test_an_error_in_the_server_has_the_form_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = stand_ins(tmp_path, {"policy": "fine"})

    def fail(*_: Any) -> None:
        raise RuntimeError("secret detail")

    app = make_app(models, 64)
    client = TestClient(app, base_url="http://127.0.0.1")
    monkeypatch.setattr(ChatModels, "prompt", fail)
    response = client.post(COMPLETIONS, json=asking())
    assert (response.status_code, check_error(response.content)["type"]) == (500, "server_error")
    assert "secret" not in response.text


# Hostile requests, made up at random


def odd(rng: random.Random, depth: int = 0) -> Any:
    """A JSON value of any type, with numbers, texts and depths that parsers get wrong."""
    kind = rng.randrange(9 if depth < 4 else 7)
    if kind == 0:
        return rng.choice([None, True, False])
    if kind == 1:
        return rng.choice([0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 4097])
    if kind == 2:
        return rng.choice([0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), float("-inf"), 2.0001])
    if kind in (3, 4, 5):
        letters = string.printable + '\x00\x7f\x85\u2028\u202e\ud800\udfff\ufeff\U0001f600é[]{}"\\'
        return "".join(rng.choices(letters, k=rng.choice([0, 1, 3, 30, 3000])))
    if kind == 6:
        return rng.choice(["user", "policy", "system", "assistant", "<|im_end|>"])
    if kind == 7:
        return [odd(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(["role", "content", "text", "type", "\ud800", ""]): odd(rng, depth + 1) for _ in range(3)}


FIELDS = ("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "seed", "stream", "stream_options")
FIELDS = (*FIELDS, "user", "n", "top_p", "presence_penalty", "frequency_penalty", "tools", "\ud800")


def mutated(rng: random.Random) -> bytes:
    """A request with fields of other types, deep nesting, or bytes that changed."""
    value: Any = asking(max_tokens=2)
    for _ in range(rng.randrange(1, 4)):
        target = rng.choice([value, value, value["messages"][0]]) if isinstance(value.get("messages"), list) else value
        if not isinstance(target, dict):
            continue
        target[rng.choice(("role", "content", "name") if "role" in target else FIELDS)] = odd(rng)
        if not (value.get("messages") and isinstance(value["messages"], list)):
            break
    text = json.dumps(value) if rng.random() < 0.9 else json.dumps(odd(rng))
    if rng.random() < 0.15:
        deep = rng.choice([50, 500, 30_000])
        opening, closing = rng.choice([("[", "]"), ('{"a":', "}")])
        text = text.replace('"Hi"', opening * deep + (closing * deep if rng.random() < 0.5 else ""), 1)
    if rng.random() < 0.05:
        text = text.replace("2", "9" * 5000, 1)
    data = bytearray(text.encode(rng.choice(["utf-8", "utf-8", "utf-8", "utf-16", "utf-32"]), "surrogatepass"))
    for _ in range(rng.choice([0, 0, 0, 1, 5])):
        if data:
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.1 else data)


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]


@pytest.mark.parametrize("seed", range(2))
def test_hostile_bodies_cause_no_traceback(seed: int, port: int, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(seed)
    counts = {"answered": 0, "refused": 0}
    for _ in range(400):
        body = mutated(rng)
        head = f"{HEAD}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
        status, received = exchange(port, head + body, end=False)
        if status == 200:
            counts["answered"] += 1
        else:
            assert 400 <= status < 500, body[:300]
            check_error(received)
            counts["refused"] += 1
    assert tracebacks(caplog) == []
    assert min(counts.values()) > 3  # both happen
    assert answer(port).status_code == 200


def test_hostile_bytes_cause_no_traceback(port: int, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(0)
    body = json.dumps(asking()).encode()
    whole = f"{HEAD}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            place = rng.randrange(len(data))
            match rng.randrange(4):
                case 0:
                    data[place] = rng.randrange(256)
                case 1:
                    del data[place : place + rng.randrange(1, 20)]
                case 2:
                    data[place:place] = rng.choice([b"\r\n", b"\r\n\r\n", b"\0", b": ", b"\xff\xfe", whole])
                case 3:
                    data[place:place] = data[: rng.randrange(1, len(data))]
        status, received = exchange(port, bytes(data))
        assert status == 0 or status < 500, bytes(data)
        if status >= 400:
            error, _, _ = received.partition(b"HTTP/1.1 ")
            check_error(error)
    assert tracebacks(caplog) == []
    assert answer(port).status_code == 200
