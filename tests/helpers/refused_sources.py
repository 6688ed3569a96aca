"""Sources that cannot be fetched, and the one line that says why."""

from pathlib import Path
from typing import Any

import pytest

from prefdag.lifecycle.errors import SourceError
from prefdag.runtime import artifacts
from prefdag.sources.fetching import fetch

KEY = "download_pairs.source"


def refusal(source: Any, out: Path) -> str:
    """The message with which fetching `source` to `out` fails. Checks that it is one line and that no file is left."""
    with pytest.raises(SourceError) as caught, artifacts.writing(out) as folder:
        fetch(source, folder, KEY)
    assert not list(out.parent.glob(f"*{out.name}*")), "left something behind"
    message = str(caught.value)
    assert message.startswith(f"params.yaml: {KEY}: ")
    assert "\n" not in message
    return message
