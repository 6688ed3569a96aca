"""Transfers that break off are kept in each test's own folder."""

from pathlib import Path

import pytest

from prefdag.sources import resuming


@pytest.fixture(autouse=True)
def kept(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that has `downloads` and `locks`."""
    folder = tmp_path_factory.mktemp("kept")
    monkeypatch.setattr(resuming, "scratch", folder.joinpath)
    return folder
