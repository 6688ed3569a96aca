"""What a stage finds out about the machine it runs on."""

import os
import subprocess
import sys

import pytest

from prefdag import stage
from prefdag.stage import IN_COMPANY, other_stages, set_environment


def test_beside_another_stage_threads_wait_without_spinning(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in IN_COMPANY:
        monkeypatch.delenv(name, raising=False)
    command = [sys.executable, "-c", "input()", "-m", "stages.dpo_text"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as other:
        assert other_stages()
        set_environment()
        assert {name: os.environ[name] for name in IN_COMPANY} == IN_COMPANY
        other.communicate(b"\n")


def test_the_users_own_settings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "other_stages", lambda: True)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    set_environment()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_alone_they_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in IN_COMPANY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(stage, "other_stages", lambda: False)
    set_environment()
    assert not set(IN_COMPANY) & set(os.environ)
