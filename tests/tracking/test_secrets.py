"""Secrets of the tracking server's address reach neither spool nor log nor MLflow, whatever a library's error quotes."""

import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from secret_addresses import address, messages

from prefdag.tracking import runs as tracking
from prefdag.tracking import spool, store


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def written() -> bytes:
    return b"".join(path.read_bytes() for path in Path(".prefdag").rglob("*") if path.is_file())


@pytest.mark.slow
def test_no_secret_is_in_the_spool_or_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each request fails with an exception that quotes the address in another form; so does a parameter."""
    import mlflow

    rng = random.Random(0)
    warned = 0
    for number in range(60):
        uri, parts = address(rng)
        if uri.startswith("sqlite"):
            continue
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        text = rng.choice(messages(uri))

        def fail(*_: Any, text: str = text) -> None:
            raise ConnectionError(f"cannot reach {text} ({text!r})")

        monkeypatch.setattr(mlflow, "MlflowClient", fail)
        with tracking.stage_run("dpo_text", {"source": uri, text: 1}, f"key{number}") as run:
            run.log(0, {"loss": 1.0})
        tracking.sync()
        store.Store().note_alive()
        everything = written().decode("utf-8", "replace") + caplog.text
        assert not [part for part in parts if part in everything], (uri, text)
        warned += len(caplog.records)
        caplog.clear()
        for folder in spool.folders():
            left = spool.claim(folder)
            assert left
            left.delete()
            left.release()
    assert warned >= 80


@pytest.mark.slow
def test_no_secret_is_in_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets of the environment that somebody put into parameters, a name or a tag."""
    monkeypatch.setenv("SOME_API_TOKEN", "s3cr3t-of-mine")
    monkeypatch.setenv("DVC_EXP_NAME", "of s3cr3t-of-mine")
    params = {"a": "s3cr3t-of-mine", "b": ["https://bob:se/cret@host/x?token=abcdef"], "plain": "https://host/x"}
    with tracking.stage_run("dpo_text", params, "kept"):
        pass
    with sqlite3.connect("mlflow.db") as connection:
        dump = "\n".join(connection.iterdump())
    assert "https://host/x" in dump
    assert "dpo_text of ***" in dump
    assert not [secret for secret in ("s3cr3t-of-mine", "se/cret", "abcdef") if secret in dump]
