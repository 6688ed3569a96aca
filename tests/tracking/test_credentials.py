"""A server that does not know who asks: one line says what to correct, and nobody waits for an answer that came."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from prefdag.check_params import load_params
from prefdag.lifecycle.errors import PrefdagError
from prefdag.runtime.yaml import flatten
from prefdag.tracking import runs, store
from prefdag.tracking.publishing import publish

NAME, PASSWORD, TOKEN = (f"MLFLOW_TRACKING_{name}" for name in ("USERNAME", "PASSWORD", "TOKEN"))
SECRET = "a-wrong-secret"


class Refusing(ThreadingHTTPServer):
    """Answers every request with one status, as MLflow and the proxies before it do."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 401
        self.asked = 0


class _Handler(BaseHTTPRequestHandler):
    server: Refusing

    def do_GET(self) -> None:
        self.server.asked += 1
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_error(self.server.status, "no")

    do_POST = do_PUT = do_GET  # noqa: N815 - http.server calls them so

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Refusing]:
    for name in (NAME, PASSWORD, TOKEN):
        monkeypatch.delenv(name, raising=False)
    for name, value in store.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))  # MLflow reads a file of credentials there
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    server = Refusing()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, f"it wants to know who asks; set {NAME} and {PASSWORD}, or {TOKEN}"),
        ({NAME: "me"}, f"it wants to know who asks; set {NAME} and {PASSWORD}, or {TOKEN}"),
        ({NAME: "me", PASSWORD: SECRET}, f"wrong user name or password; correct {NAME} and {PASSWORD}"),
        ({TOKEN: SECRET}, f"the token is unknown or has expired; set {TOKEN} to a new one"),
        ({NAME: "me", PASSWORD: SECRET, TOKEN: "x"}, f"wrong user name or password; correct {NAME} and {PASSWORD}"),
        ({"MLFLOW_TRACKING_URI": "me"}, "wrong user name or password; correct those in MLFLOW_TRACKING_URI"),
    ],
)
def test_the_line_says_what_to_correct(
    server: Refusing, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    if "MLFLOW_TRACKING_URI" in environment:
        environment = {"MLFLOW_TRACKING_URI": f"http://me:{SECRET}@127.0.0.1:{server.server_port}"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PrefdagError) as caught:
        runs.pipelines()
    assert str(caught.value) == f"MLflow at {store.Store().name}: {message}"
    assert SECRET not in str(caught.value)
    assert not store.Store().known_dead()  # the next stage asks again: the variable may be corrected by then


@pytest.mark.slow
def test_the_first_refusal_ends_a_sync(server: Refusing, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        publish(flatten(load_params()), {}, {}, [])
    server.asked = 0
    caplog.clear()
    assert runs.sync() == runs.SyncResult(sent=0, left=3)
    assert [record.getMessage().count("who asks") for record in caplog.records] == [1]
    assert server.asked == 2  # a request that fails is tried once more


@pytest.mark.slow
def test_a_user_without_the_permission_is_told_so(server: Refusing) -> None:
    server.status = 403
    with pytest.raises(
        PrefdagError, match=r": this user may not do that; ask the server's administrator for permission$"
    ):
        runs.pipelines()


def test_an_artifact_that_is_refused_is_no_outage(server: Refusing) -> None:
    """Files come as other exceptions than everything else."""
    from mlflow.artifacts import download_artifacts

    for status, kind in ((401, store.CredentialsError), (403, store.RefusalError), (413, store.RefusalError)):
        server.status = status
        with pytest.raises(kind):
            store.Store().ask(lambda _: download_artifacts("mlflow-artifacts:/1/a.txt"))
    assert not store.Store().known_dead()
    server.status = 503
    with pytest.raises(store.OutageError):
        store.Store().ask(lambda _: download_artifacts("mlflow-artifacts:/1/a.txt"))
