"""A stage runs once at a time. `test_killed_dvc.py` tests what happens if DVC is killed."""

import threading
from pathlib import Path

import pytest

from prefdag.lifecycle.errors import PrefdagError
from prefdag.lifecycle.lock import end_with_dvc, stage_lock


def test_a_running_stage_is_not_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with stage_lock("dpo_text"), stage_lock("dpo_image"):
        with pytest.raises(PrefdagError, match=r"^dpo_text: already running in this directory"), stage_lock("dpo_text"):
            pass
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with stage_lock("dpo_text"):  # a second process of the same run
            pass
    monkeypatch.delenv("WORLD_SIZE")  # the RANK that is left is no launcher's
    with pytest.raises(PrefdagError), stage_lock("dpo_text"), stage_lock("dpo_text"):
        pass
    with stage_lock("dpo_text"):
        pass


def test_without_dvc_no_thread_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_STAGE", raising=False)
    before = threading.active_count()
    end_with_dvc()
    assert threading.active_count() == before
