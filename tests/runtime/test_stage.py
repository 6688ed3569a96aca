"""The environment that a stage sets, and the durations that it records."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prefdag.config.params import Params
from prefdag.lifecycle import environment
from prefdag.lifecycle.environment import BESIDE_OTHERS, other_stages, set_environment
from prefdag.runtime import stage
from prefdag.tracking.durations import PROBE, durations, note_duration


def test_beside_another_stage_threads_wait_without_spinning(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in BESIDE_OTHERS:
        monkeypatch.delenv(name, raising=False)
    command = [sys.executable, "-c", "input()", "-m", "stages.dpo_text"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as other:
        assert other_stages()
        set_environment()
        assert {name: os.environ[name] for name in BESIDE_OTHERS} == BESIDE_OTHERS
        other.communicate(b"\n")


def test_the_users_settings_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "other_stages", lambda: True)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    set_environment()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_a_stage_on_its_own_sets_no_wait_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in BESIDE_OTHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(environment, "other_stages", lambda: False)
    set_environment()
    assert not set(BESIDE_OTHERS) & set(os.environ)


# Durations of stages


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two stages and their outputs: a folder with a large file, and a metric."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / "dvc.yaml").write_text(
        "stages: {test_stage: {cmd: x, outs: [model], metrics: [m.json: {cache: false}]}, other: {cmd: x, outs: [o]}}"
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights").write_bytes(bytes(3 * PROBE))
    (tmp_path / "m.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("place", [0, 3 * PROBE - 1])
def test_a_duration_belongs_to_the_current_outputs(project: Path, place: int) -> None:
    assert durations() == {"test_stage": None, "other": None}
    note_duration("test_stage", 12.3456)
    assert durations() == {"test_stage": round(12.3456, 3), "other": None}
    # Another experiment's outputs have their own duration. When the first outputs return, so does their duration.
    weights = bytearray(3 * PROBE)
    weights[place] = 1
    (project / "model/weights").write_bytes(weights)
    assert durations()["test_stage"] is None
    note_duration("test_stage", 7.0)
    assert durations()["test_stage"] == 7.0
    (project / "model/weights").write_bytes(bytes(3 * PROBE))
    assert durations()["test_stage"] == round(12.3456, 3)
    (project / "m.json").write_text("[]")
    assert durations()["test_stage"] is None


def test_experiments_share_durations(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note_duration("test_stage", 2.0)
    monkeypatch.setenv("DVC_ROOT", str(project))
    temporary = shutil.copytree(project, tmp_path / "exp", ignore=shutil.ignore_patterns(".prefdag"))
    monkeypatch.chdir(temporary)
    assert durations()["test_stage"] == 2.0
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    note_duration("other", 3.0)
    assert durations()["other"] is None


def test_only_a_stage_that_succeeds_notes_its_duration(
    project: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(root / "params.yaml", project)
    monkeypatch.setattr(sys, "argv", ["stage"])
    fails = True

    @stage.stage
    def main(params: Params) -> None:
        (project / "m.json").write_text('"new"')
        if fails:
            raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        main.run()
    assert durations()["test_stage"] is None
    fails = False
    main.run()
    assert durations()["test_stage"] is not None
