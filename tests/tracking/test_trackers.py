"""Reports to TensorBoard and Weights & Biases: through accelerate, from the environment, and never at training's cost.

Packages of the same names stand in for both and write down their calls; test_real_trackers.py has the real ones.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from tasks import slow

from prefdag.dependencies import EXEMPT
from prefdag.lifecycle.errors import ParamsError
from prefdag.tracking import runs, trackers

WANDB = """
import json, os, time
from pathlib import Path
def note(*call):
    if os.environ.get("HANGING") == call[0]:
        time.sleep(20)
    if os.environ.get("BROKEN") == call[0]:
        raise OSError("no space\\nleft")
    with Path(os.environ["CALLS"]).open("a") as stream:
        stream.write(json.dumps(call) + "\\n")
class Config:
    def update(self, values, **options): note("config", values)
config = Config()
class Run:
    def log(self, values, step): note("log", step, values)
    def finish(self): note("finish")
def init(**options):
    note("init", options)
    return Run()
"""
TENSORBOARD = """
import json, os
from pathlib import Path
class SummaryWriter:
    def __init__(self, folder): self.path = Path(folder, "scalars.jsonl"); self.path.parent.mkdir(parents=True)
    def add_hparams(self, values, metric_dict): pass
    def flush(self): pass
    def close(self): pass
    def add_scalar(self, key, value, global_step):
        with self.path.open("a") as stream: stream.write(json.dumps([key, value, global_step]) + "\\n")
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without MLflow: what is sent there is tested elsewhere."""
    for name in ("RANK", "WANDB_PROJECT", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def calls(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Both packages as if they were installed. Returns a function that reads the calls of wandb."""
    site = project / "site"
    for name, content in (("wandb", WANDB), ("tensorboardX", TENSORBOARD)):
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text(content)
        info = site / f"{name}-9.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.0\n")
    monkeypatch.syspath_prepend(str(site))
    for name in [name for name in sys.modules if name.partition(".")[0] in {"wandb", "tensorboardX"}]:
        monkeypatch.delitem(sys.modules, name)  # the real one, if another test has imported it
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as without tensorboard
    monkeypatch.setenv("CALLS", str(project / "calls.jsonl"))
    yield lambda: [json.loads(line) for line in (project / "calls.jsonl").read_text().splitlines()]
    for name in ("wandb", "tensorboardX"):
        sys.modules.pop(name, None)


def train(steps: int, fail: bool = False) -> None:
    with runs.stage_run("dpo_text", {"beta": 0.1, "dpo_text": {"flip": None, "modules": ["q"]}}, "key") as run:
        for step in range(steps):
            run.log(step, {"loss": 1 / (step + 1)})
        if fail:
            raise RuntimeError


def scalars(project: Path) -> list[Any]:
    (path,) = (project / ".prefdag/tensorboard").glob("dpo_text workspace*/scalars.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_both_trackers_get_every_metric(project: Path, calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(trackers.VARIABLE, " TensorBoard,wandb , mlflow")
    train(2)
    (begin, options), config, *logged, end = calls()
    assert (begin, options["project"], options["name"]) == ("init", "prefdag", "dpo_text workspace")
    assert config == ["config", {"beta": 0.1, "dpo_text.flip": "null", "dpo_text.modules": '["q"]'}]
    assert logged == [["log", 0, {"loss": 1.0}], ["log", 1, {"loss": 0.5}]]
    assert end == ["finish"]
    assert scalars(project) == [["loss", 1.0, 0], ["loss", 0.5, 1]]


def test_a_resumed_stage_goes_on_in_its_run(calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(trackers.VARIABLE, "wandb")
    with pytest.raises(RuntimeError):
        train(2, fail=True)
    train(3)
    first, second = (options for kind, options, *_ in filter(lambda call: call[0] == "init", calls()))
    assert first["id"] == second["id"]
    assert second["resume"] == "allow"
    assert [step for kind, step, *_ in filter(lambda call: call[0] == "log", calls())] == [0, 1, 2]


@pytest.mark.parametrize("broken", ["init", "config", "log", "finish"])
def test_a_tracker_that_fails_stops_nothing(
    broken: str, project: Path, calls: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BROKEN", broken)
    monkeypatch.setenv(trackers.VARIABLE, "wandb,tensorboard")
    train(3)
    assert [step for *_, step in scalars(project)] == [0, 1, 2]
    messages = [record.getMessage() for record in caplog.records if record.name == trackers.log.name]
    assert messages == ["wandb: OSError: no space left; the run goes on without it"]


@pytest.mark.slow
@pytest.mark.parametrize("hanging", ["log", *map(slow, ["init", "config", "finish"])])
def test_a_tracker_that_hangs_is_given_up(
    hanging: str, project: Path, calls: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HANGING", hanging)
    monkeypatch.setenv(trackers.VARIABLE, "wandb,tensorboard")
    monkeypatch.setattr(trackers, "LONGEST", 1)
    began = time.monotonic()
    train(3)
    assert time.monotonic() - began < 15
    assert [step for *_, step in scalars(project)] == [0, 1, 2]
    messages = [record.getMessage() for record in caplog.records if record.name == trackers.log.name]
    assert messages == ["wandb: TimeoutError: no answer in 1 s; the run goes on without it"]


def test_packages_that_are_not_installed_are_named(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import accelerate.utils

    for name in ("tensorboard", "wandb"):
        monkeypatch.setattr(accelerate.utils, f"is_{name}_available", lambda: False)
    monkeypatch.setenv(trackers.VARIABLE, "tensorboard,wandb")
    with caplog.at_level(logging.WARNING):
        train(1)
    messages = [record.getMessage() for record in caplog.records if record.name == trackers.log.name]
    assert messages == [
        "PREFDAG_REPORT_TO: tensorboard is not installed; `pip install tensorboard` adds it",
        "PREFDAG_REPORT_TO: wandb is not installed; `pip install wandb` adds it",
    ]
    assert not (project / ".prefdag/tensorboard").exists()


def test_an_unknown_tracker_stops_the_stage_before_it_begins(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(trackers.VARIABLE, "tensorbord")
    with pytest.raises(
        ParamsError, match=r"^PREFDAG_REPORT_TO: 'tensorbord' is unknown; choose from tensorboard, wandb"
    ):
        train(1)
    assert not list(project.glob(".prefdag/spool/*"))


def test_only_the_first_process_reports(calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(trackers.VARIABLE, "wandb")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    train(1)
    with pytest.raises(FileNotFoundError):
        calls()


def test_where_a_run_is_reported_to_changes_no_output() -> None:
    assert "prefdag/tracking/trackers.py" in EXEMPT
    assert trackers.VARIABLE not in (ROOT / "params.yaml").read_text("utf-8")
    assert trackers.VARIABLE not in (ROOT / "dvc.yaml").read_text("utf-8")
