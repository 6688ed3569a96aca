"""Whatever hangs on the way to MLflow, a stage ends soon, keeps its run in the spool, and says so in one line."""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from paths import ROOT

from prefdag.lifecycle.errors import PrefdagError
from prefdag.tracking import delivery, spool, store
from prefdag.tracking import runs as tracking

Patch = pytest.MonkeyPatch
FOREVER = 8.0  # seconds, longer than any test waits


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: Patch) -> Iterator[None]:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in store.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    store.import_mlflow()
    monkeypatch.setattr(delivery, "PATIENCE", 0.5)
    monkeypatch.setattr(delivery, "LONGEST", 2.0)
    monkeypatch.setattr(tracking, "LONGEST", 2.0)
    monkeypatch.setattr(store, "OPENING", 1.0)
    yield
    for thread in threading.enumerate():  # those that still hang; other tests wait for threads of this name
        if thread.name == "prefdag-delivery":
            thread.name = "abandoned"


@contextmanager
def dangling_link(patch: Patch) -> Iterator[str]:
    Path("mlflow.db").symlink_to("/nonexistent/mlflow.db")
    yield "a link to /nonexistent/mlflow.db, which does not exist; remove the link"
    Path("mlflow.db").unlink()


@contextmanager
def folder(patch: Patch) -> Iterator[str]:
    Path("mlflow.db").mkdir()
    yield "mlflow.db: not a file; move it away"
    Path("mlflow.db").rmdir()


@contextmanager
def fifo(patch: Patch) -> Iterator[str]:
    os.mkfifo("mlflow.db")
    yield "mlflow.db: not a file; move it away"
    Path("mlflow.db").unlink()


@contextmanager
def no_folder(patch: Patch) -> Iterator[str]:
    with patch.context() as inner:
        inner.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{Path.cwd()}/absent/mlflow.db")
        yield "mlflow.db: its folder does not exist; create it"


@contextmanager
def held_lock(patch: Patch) -> Iterator[str]:
    Path(".prefdag").mkdir(exist_ok=True)
    with FileLock(".prefdag/mlflow.lock"):
        yield "(no answer in 1 s|another process has been opening the database for 1 s)"


@contextmanager
def stopped_server(patch: Patch) -> Iterator[str]:
    """A process that got SIGSTOP: the system accepts connections for it, and nobody answers."""
    code = "import http.server as h; s = h.ThreadingHTTPServer(('127.0.0.1', 0), h.SimpleHTTPRequestHandler)\n"
    code += "print(s.server_port, flush=True); s.serve_forever()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    port = int(process.stdout.readline())
    process.send_signal(signal.SIGSTOP)
    try:
        with remote(patch, f"http://127.0.0.1:{port}"):
            yield "no answer in 0 s"
    finally:
        process.kill()
        process.wait()


@contextmanager
def black_hole(patch: Patch) -> Iterator[str]:
    """An address that answers no SYN: its queue of connections is full."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        with remote(patch, f"http://127.0.0.1:{server.getsockname()[1]}"):
            yield "no answer in 0 s"


@contextmanager
def name_server(patch: Patch) -> Iterator[str]:
    with remote(patch, "http://mlflow.example"), patch.context() as inner:
        inner.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(FOREVER))
        yield "no answer in 0 s"


@contextmanager
def sql_server(patch: Patch) -> Iterator[str]:
    """A driver that hangs while it connects."""
    import mlflow

    with remote(patch, "postgresql://bob:se/cret@db.example/mlflow"), patch.context() as inner:
        inner.setattr(mlflow, "MlflowClient", lambda *_, **__: time.sleep(FOREVER))
        yield r"MLflow at postgresql://db\.example/mlflow: no answer in 0 s"


@contextmanager
def importing(patch: Patch) -> Iterator[str]:
    with patch.context() as inner:
        inner.setattr(store, "import_mlflow", lambda: time.sleep(FOREVER))
        yield "no answer in 1 s"


@contextmanager
def broken_installation(patch: Patch) -> Iterator[str]:
    def fail() -> None:
        raise AttributeError("module 'x' has no attribute 'y'")

    with patch.context() as inner:
        inner.setattr(store, "import_mlflow", fail)
        yield "mlflow cannot be imported"


@contextmanager
def something_else(patch: Patch) -> Iterator[str]:
    """A hang between two requests."""
    with patch.context() as inner:
        inner.setattr(store.Store, "begin", lambda *_: time.sleep(FOREVER))
        yield "not finished after 2 s"


@contextmanager
def remote(patch: Patch, uri: str) -> Iterator[None]:
    with patch.context() as inner:
        inner.setenv("MLFLOW_TRACKING_URI", uri)
        yield
    store.Store().note_alive()


Trouble = Callable[[Patch], Any]
HANGS: list[Trouble] = [dangling_link, folder, fifo, no_folder, held_lock, stopped_server, black_hole]
HANGS += [name_server, sql_server, importing, broken_installation, something_else]


@pytest.mark.slow
@pytest.mark.parametrize("trouble", HANGS, ids=lambda trouble: trouble.__name__)
def test_a_stage_ends_soon_and_keeps_its_run(
    trouble: Trouble, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "prefdag")
    with trouble(monkeypatch) as message:
        start = time.monotonic()
        with tracking.stage_run("dpo_text", {"beta": 0.1}, "hang") as run:
            run.log(0, {"loss": 1.0})
        assert time.monotonic() - start < 6
        (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("prefdag")]
        assert re.search(message, warning), warning
        assert warning.endswith("/dpo_text-hang; `prefdag sync` sends it")
        assert "\n" not in warning
        assert "cret" not in warning
    events = [event["kind"] for event in events_of("dpo_text-hang")]
    assert events == ["start", "step", "status"]


def events_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(".prefdag/spool", name, "events.jsonl").read_text().splitlines()]


def left_run() -> None:
    """A run in the spool that nobody holds."""
    run = spool.claim_any("left")
    tags = {"kind": "stage", "prefdag.key": "left", "prefdag.spool": "f00d"}
    run.append({"kind": "start", "time": 1, "name": "n", "tags": tags, "params": {}})
    run.append({"kind": "status", "time": 3, "status": "FINISHED"})
    run.release()


@pytest.mark.slow
@pytest.mark.parametrize("trouble", HANGS, ids=lambda trouble: trouble.__name__)
def test_sync_and_the_list_of_runs_end_soon(trouble: Trouble, monkeypatch: Patch) -> None:
    left_run()
    with trouble(monkeypatch):
        start = time.monotonic()
        if trouble is not something_else:  # which the list does not need
            with pytest.raises(PrefdagError, match=r"^MLflow at .*; try again when it answers$"):
                tracking.pipelines()
        assert tracking.sync() == tracking.SyncResult(sent=0, left=1)
        assert time.monotonic() - start < 10
    assert [path.name for path in spool.folders()] == ["left"]


@pytest.mark.slow
def test_a_damaged_spool_is_one_line_and_the_others_are_sent(
    caplog: pytest.LogCaptureFixture, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(store, "OPENING", 60.0)
    monkeypatch.setattr(tracking, "LONGEST", 60.0)
    monkeypatch.setattr(delivery, "PATIENCE", 8.0)
    left_run()
    broken = spool.claim_any("broken")
    broken.append({"kind": "start", "time": 1, "name": "n", "tags": {}, "params": {}})  # without its tags
    broken.append({"kind": "status", "time": 3, "status": "FINISHED"})
    (broken.folder / "sent.json").write_text("{")
    broken.release()
    assert tracking.sync() == tracking.SyncResult(sent=1, left=1)
    assert [path.name for path in spool.folders()] == ["broken"]
    assert "; the run is kept in " in caplog.text


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("uri", ["", "http://10.255.255.1", "postgresql://u:p@10.255.255.1/x"])
def test_the_defaults_are_short_too(uri: str, tmp_path: Path) -> None:
    """A process of its own, with nothing shortened, and a link to nothing in place of the database."""
    (tmp_path / "mlflow.db").symlink_to("/nonexistent/mlflow.db")
    code = """
        from prefdag.tracking import runs
        with runs.stage_run("dpo_text", {}, "chaos") as run:
            run.log(0, {"loss": 1.0})
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": uri}
    start = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert time.monotonic() - start < 45
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr
    assert (tmp_path / ".prefdag" / "spool" / "dpo_text-chaos" / "events.jsonl").exists()
