"""The environment of the tests is that of a stage: no telemetry, no idle threads spinning."""

from pathlib import Path

import pytest

from prefdag.stage import set_environment

set_environment()


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return Path(__file__).parents[1]
