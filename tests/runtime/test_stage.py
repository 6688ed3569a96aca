"""The environment that a stage sets, and the durations that it records."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from prefdag.config.params import Params
from prefdag.lifecycle import environment
from prefdag.lifecycle.environment import BESIDE_OTHERS, other_stages, set_environment
from prefdag.lifecycle.errors import ParamsError
from prefdag.runtime import stage
from prefdag.runtime.dvc_files import check_files, lock_of, read_dag, read_stage, target
from prefdag.runtime.running import running_stage
from prefdag.runtime.types import Positive
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


# Stages under foreach


FOREACH = """
stages:
  again:
    foreach: {"1": {before: start}, "2": {before: models/1}}
    do:
      cmd: python -m stages.again ${key}
      deps: ["${item.before}", stages/again.py]
      outs: [{"models/${key}": {cache: false}}]
"""


def test_the_stages_of_a_foreach_are_read_as_dvc_names_them(project: Path) -> None:
    Path("dvc.yaml").write_text(FOREACH)
    assert read_dag() == {
        "again@1": {
            "cmd": "python -m stages.again 1",
            "deps": ["start", "stages/again.py"],
            "outs": [{"models/1": {"cache": False}}],
        },
        "again@2": {
            "cmd": "python -m stages.again 2",
            "deps": ["models/1", "stages/again.py"],
            "outs": [{"models/2": {"cache": False}}],
        },
    }
    note_duration("again@2", 5.0)
    assert durations() == {"again@1": None, "again@2": 5.0}


@pytest.mark.parametrize("wrong", ["foreach: 3, do: {cmd: x}", "foreach: {a: 1}", "foreach: [a], do: {cmd: x}"])
def test_a_foreach_of_another_kind_is_one_line(project: Path, wrong: str) -> None:
    Path("dvc.yaml").write_text(f"stages: {{one: {{{wrong}}}}}")
    with pytest.raises(
        ParamsError, match=r"^dvc.yaml: stages.one: expected foreach and do to be mappings; `git restore"
    ):
        read_dag()


def test_a_stage_knows_which_of_a_foreach_it_is() -> None:
    """The round is no section of params.yaml; locks, checkpoints and runs get the stage's whole name."""
    names = []

    def main(number: Literal[1, 2], /, beta: Positive) -> None:
        names.append((number, beta, running_stage().name, running_stage().params))

    again = stage.stage(main)
    assert again.keys == ["beta"]
    again(2, beta=0.5)
    again(1, 0.3)
    assert names == [(2, 0.5, "test_stage@2", {"beta": 0.5}), (1, 0.3, "test_stage@1", {"beta": 0.3})]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["4"], ["one"]])
def test_a_round_that_does_not_exist_is_refused(arguments: list[str], root: Path) -> None:
    command = [sys.executable, "-m", "stages.sample_round", *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("python -m stages.sample_round: error: ")


# Files in folders


def in_folder(text: str, name: str = "dvc.yaml") -> None:
    Path("dag/more").mkdir(parents=True, exist_ok=True)
    Path("dag/more", name).write_text(text)


def test_stages_in_folders_come_where_they_are_needed(project: Path) -> None:
    """Stages of a circle, which DVC refuses, are read, too."""
    Path("dvc.yaml").write_text("stages: {a: {outs: [x]}, b: {outs: [y]}, c: {deps: [z/part]}, d: {}}")
    in_folder("stages: {f: {deps: [w], outs: [z]}, e: {deps: [x], outs: [w]}, g: {deps: [h], outs: [h]}}")
    assert list(read_dag()) == ["a", "b", "e", "f", "c", "d", "g"]
    assert read_stage("c") == {"deps": ["z/part"]}
    assert read_stage("e") == {"deps": ["x"], "outs": ["w"]}
    with pytest.raises(ParamsError, match=r"^dvc.yaml: stages: has no k; `git restore dvc.yaml`"):
        read_stage("k")
    assert [lock_of(name) for name in ("a", "e")] == [Path("dvc.lock"), Path("dag/more/dvc.lock")]
    assert [target(name) for name in ("a", "e")] == ["a", "dag/more/dvc.yaml:e"]
    note_duration("e", 5.0)
    assert durations()["e"] == 5.0


@pytest.mark.parametrize("name", ["dvc.yaml", "dvc.lock"])
def test_a_damaged_file_in_a_folder_is_one_line(project: Path, name: str) -> None:
    Path(name).write_text("stages: {}")
    in_folder("stages: 3", name)
    with pytest.raises(ParamsError, match=rf"^dag/more/{name}: stages: .*`git restore dag/more/{name}`"):
        check_files()
    in_folder("stages: {a: {outs: 3}}", name)
    with pytest.raises(ParamsError, match=rf"^dag/more/{name}: stages.a.outs: .*`git restore dag/more/{name}`"):
        check_files()
