"""Reports to the real TensorBoard and Weights & Biases (offline), read back from their files with their own readers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from prefdag.tracking import trackers

pytestmark = pytest.mark.slow

SECRET = "5ec2e7" * 6 + "5ec2"
TRAIN = """
from prefdag.tracking import runs
for steps, fail in ((2, True), (3, False)):  # the stage is killed after two steps, and resumed
    try:
        with runs.stage_run("dpo_text", {"beta": 0.1, "dpo_text": {"flip": None, "modules": ["q"]}}, "key") as run:
            for step in range(0 if fail else 2, steps):
                run.log(step, {"loss": 1 / (step + 1)})
            if fail:
                raise RuntimeError
    except RuntimeError:
        pass
"""


def train(project: Path, name: str) -> str:
    """Train with one tracker, in a process of its own. Returns what it printed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RANK", "WANDB_", "DVC_EXP"))}
    done = subprocess.run(
        [sys.executable, "-c", TRAIN],
        cwd=project,
        env={
            **environment,
            "PYTHONPATH": str(ROOT),
            "DVC_ROOT": str(project),
            "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",  # nobody listens there
            "WANDB_MODE": "offline",
            "WANDB_API_KEY": SECRET,
            trackers.VARIABLE: name,
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout + done.stderr


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, "tensorboard")
    (folder,) = (tmp_path / ".prefdag/tensorboard").iterdir()
    assert folder.name.startswith("dpo_text workspace")
    events = EventAccumulator(str(folder)).Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (0, 1.0),
        (1, 0.5),
        (2, pytest.approx(1 / 3)),
    ]


def records(path: Path) -> list[Any]:
    """The records of a run that W&B keeps until `wandb sync`: LevelDB's log format, after 7 bytes of W&B's own.

    W&B has no reader for Python. A record has a checksum (4 bytes), a length (2) and a kind: 1 and 4 end it.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole, parsed = path.read_bytes(), 7, b"", []
    assert content.startswith(b":W&B")
    while at + 7 <= len(content):
        if (left := -at % 2**15) and left < 7:  # a block ends with zeros
            at += left
            continue
        end = at + 7 + int.from_bytes(content[at + 4 : at + 6], "little")
        whole += content[at + 7 : end]
        if content[at + 6] in (1, 4):
            parsed.append(Record.FromString(whole))
            whole = b""
        at = end
    return parsed


def test_wandb_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    printed = train(tmp_path, "wandb")
    steps, ids = {}, set()
    folders = sorted((tmp_path / ".prefdag/wandb").glob("offline-run-*"))
    for folder in folders:
        assert not [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
        (path,) = folder.glob("run-*.wandb")
        by_kind: dict[str, list[Any]] = {}
        for record in records(path):
            kind = record.WhichOneof("record_type")
            by_kind.setdefault(kind, []).append(getattr(record, kind))
        (run,) = by_kind["run"]
        assert (run.project, run.display_name) == ("prefdag", "dpo_text workspace")
        ids.add(run.run_id)
        config = {item.key: json.loads(item.value_json) for item in by_kind["config"][0].update}
        assert config == {"beta": 0.1, "dpo_text.flip": "null", "dpo_text.modules": '["q"]'}
        for row in by_kind["history"]:
            values = {".".join(item.nested_key): json.loads(item.value_json) for item in row.item}
            steps[values["_step"]] = values["loss"]
        assert "exit" in by_kind
    assert (len(folders), len(ids)) == (2, 1)  # the resumed stage goes on in its run
    assert steps == {0: 1.0, 1: 0.5, 2: 1 / 3}
    assert SECRET not in printed
