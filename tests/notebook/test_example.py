"""The example notebook: every cell runs, and the outputs it stores are those it gives."""

import copy
import re
from pathlib import Path
from typing import Any

import notebook_runner
import pytest
from paths import ROOT

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def shapes(notebook: dict[str, Any]) -> list[list[Any]]:
    """Each cell's outputs without what differs between machines: digits, and what a picture shows."""
    return [
        [
            (output["output_type"], sorted(output.get("data", {})), re.sub(r"[\s\d]+", "", "".join(text)))
            for output in cell["outputs"]
            for text in [output.get("text") or output["data"]["text/plain"]]
        ]
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]


@pytest.mark.slow
def test_every_cell_runs_and_gives_the_stored_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs no file of the repository."""
    monkeypatch.chdir(tmp_path)
    stored = notebook_runner.read(NOTEBOOK)
    assert shapes(notebook_runner.run(copy.deepcopy(stored))) == shapes(stored), (
        "run `python tests/helpers/notebook_runner.py docs/notebook.ipynb`"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_stored_outputs_have_pictures_and_no_errors() -> None:
    notebook = notebook_runner.read(NOTEBOOK)
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data", "execute_result"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert NOTEBOOK.stat().st_size < 200_000


@pytest.mark.slow
def test_the_runner_stores_what_a_cell_prints_returns_and_draws() -> None:
    import matplotlib.pyplot as plt

    def outputs(source: str) -> list[Any]:
        cell = {"cell_type": "code", "source": [source]}
        return notebook_runner.run({"cells": [cell]})["cells"][0]["outputs"]

    assert [each["output_type"] for each in outputs("print(1)\n2")] == ["stream", "execute_result"]
    assert outputs("x = 1") == outputs("1;") == []
    drawn = outputs("import matplotlib.pyplot as plt\nplt.plot([1, 2]);")
    assert [sorted(each["data"]) for each in drawn] == [["image/png", "text/plain"]]
    with pytest.raises(ZeroDivisionError):
        outputs("1 / 0")
    plt.figure()  # another test's
    assert outputs("x = 1") == []
