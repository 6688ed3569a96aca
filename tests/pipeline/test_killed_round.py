"""`dvc repro` and its stage are killed in the middle of a round, first while it samples, then while it trains, and go on."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from clones import environment_of, run_in, set_params, stages_run

from prefdag.runtime.artifacts import sha256

# A stage imports this before anything else. It stops after it has renamed a file or a folder to a certain name.
STOPS = """\
import os, time
from pathlib import Path

replace = Path.replace

def stopping(self, target):
    result = replace(self, target)
    if "STOP_AFTER" in os.environ and Path(target).match(os.environ["STOP_AFTER"]):
        Path("pid.part").write_text(str(os.getpid()))
        os.replace("pid.part", "pid")
        time.sleep(600)
    return result

Path.replace = stopping
"""
SETTINGS = {"count": 2, "batch_size": 1, "kl_budget": 1e6}
FIRST = [f"dag/{name}_round/dvc.yaml:{name}_round@1" for name in ("sample", "judge", "dpo", "evaluate")]
SECOND = [f"dag/{name}_round/dvc.yaml:{name}_round@2" for name in ("sample", "judge", "dpo")]
OUTPUTS = [Path("data/rounds/2/samples"), Path("models/rounds/2")]


@pytest.fixture
def project(small: Path, tmp_path: Path) -> Path:
    """The project with a small random model, under DVC; round 1 has run."""
    folder = tmp_path / "project"
    run_in(tmp_path, "cp", "-r", str(small), str(folder))
    (tmp_path / "sitecustomize.py").write_text(STOPS)
    run_in(folder, "git", "init", "--quiet")
    run_in(folder, "dvc", "init", "--quiet", "--force")
    set_params(folder, {f"rounds.{key}": value for key, value in SETTINGS.items()})
    repro(folder, ["dag/plan_rounds/dvc.yaml:plan_rounds", *FIRST])
    return folder


def repro(folder: Path, stages: list[str], *options: str) -> str:
    return run_in(folder, "dvc", "repro", "--single-item", *options, *stages, PYTHONPATH=str(folder)).stdout


def killed(folder: Path, after: str) -> str:
    """Kill DVC and its stage with SIGKILL once the stage has made what `after` names. Returns what they printed."""
    environment = environment_of(folder) | {"PYTHONPATH": f"{folder.parent}{os.pathsep}{folder}", "STOP_AFTER": after}
    command = ["dvc", "repro", "--single-item", *SECOND]
    with (folder / "log").open("w") as log:
        dvc = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 300
    while not (folder / "pid").exists():
        assert dvc.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    stage = psutil.Process(int((folder / "pid").read_text()))
    os.kill(dvc.pid, signal.SIGKILL)
    os.kill(stage.pid, signal.SIGKILL)
    dvc.wait()
    stage.wait(60)
    (folder / "pid").unlink()
    return (folder / "log").read_text()


def test_a_killed_round_goes_on(project: Path) -> None:
    killed(project, "sample_round@2/*/1.parquet")
    assert not (project / OUTPUTS[0]).exists()
    log = killed(project, "dpo_round@2/*/step-*1")
    assert "continuing after 2 of 4 prompts" in log
    assert not (project / OUTPUTS[1]).exists()
    assert [*project.glob(".prefdag/checkpoints/sample_round@2/*")] == []
    log = repro(project, SECOND)
    assert stages_run(log) == ["dpo_round@2"]
    assert "continuing from step 1" in log
    resumed = [sha256(project / path) for path in OUTPUTS]
    assert len(stages_run(repro(project, [SECOND[0], SECOND[2]], "--force"))) == 2
    assert [sha256(project / path) for path in OUTPUTS] == resumed
