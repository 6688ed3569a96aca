"""Training without a working MLflow: the same weights, little delay, and a complete run after `prefdag sync`."""

import re
import shutil
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from clones import Run

from prefdag.runtime.artifacts import sha256

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


@contextmanager
def nobody(copy: Path) -> Iterator[str]:
    """A port at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@contextmanager
def black_hole(copy: Path) -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def locked(copy: Path) -> Iterator[str]:
    """A database that another process is writing to."""
    with closing(sqlite3.connect(copy / "mlflow.db")) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield f"sqlite:///{copy}/mlflow.db"
        connection.rollback()


@contextmanager
def another_schema(copy: Path) -> Iterator[str]:
    """A database with the schema of another MLflow version."""

    def put(version: str) -> str:
        with closing(sqlite3.connect(copy / "mlflow.db")) as connection:
            (before,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
            connection.commit()
            return str(before)

    before = put("0123456789ab")
    yield f"sqlite:///{copy}/mlflow.db"
    put(before)


def seconds_of(copy: Path, run: Run, uri: str) -> tuple[float, str]:
    """Train the image policy with this tracking address. Returns the seconds it took and its output."""
    shutil.rmtree(copy / "models" / "dpo_image")
    start = time.monotonic()
    output = run("python", "-m", "stages.dpo_image", MLFLOW_TRACKING_URI=uri).stdout
    return time.monotonic() - start, output


@pytest.mark.parametrize("trouble", [nobody, black_hole, locked, another_schema], ids=lambda trouble: trouble.__name__)
def test_training_does_not_need_mlflow(trouble: object, copy: Path, tiny: Path, run: Run) -> None:
    database = f"sqlite:///{copy}/mlflow.db"
    usual, output = seconds_of(copy, run, database)
    assert "prefdag sync" not in output
    with trouble(copy) as uri:  # type: ignore[operator]
        later, output = seconds_of(copy, run, uri)
    assert re.search(r"WARNING prefdag\.tracking\.delivery: MLflow at .*; `prefdag sync` sends it\n", output), output
    assert "Traceback" not in output
    assert sha256(copy / "models" / "dpo_image") == sha256(tiny / "models" / "dpo_image")
    assert later < usual + 10  # seconds; a delivery may wait eight of them
    before = runs(copy)
    sent = run("prefdag", "sync", MLFLOW_TRACKING_URI=database).stdout
    assert sent == "sent 1, left 0\n"
    assert runs(copy) == before + 1
    assert run("prefdag", "sync", MLFLOW_TRACKING_URI=database).stdout == "sent 0, left 0\n"
    assert runs(copy) == before + 1


def runs(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        (count,) = connection.execute("SELECT count(*) FROM runs").fetchone()
    return int(count)
