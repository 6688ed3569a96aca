"""`dvc plots` draws existing outputs with templates that are valid Vega-Lite."""

import json
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from prefdag.runtime.yaml import read_yaml

TEMPLATES = sorted((ROOT / ".dvc" / "plots").glob("*.json"))
BUILT_IN = {"linear", "scatter", "confusion"}


@pytest.fixture(scope="module")
def dag() -> dict[str, Any]:
    return read_yaml(ROOT / "dvc.yaml")


def test_plots_are_drawn_from_outputs(dag: dict[str, Any]) -> None:
    stages = dag["stages"].values()
    outputs = {next(iter(out)) if isinstance(out, dict) else out for stage in stages for out in stage.get("outs", ())}
    templates = BUILT_IN | {path.stem for path in TEMPLATES}
    used = set()
    for plot in dag["plots"]:
        ((title, spec),) = plot.items()
        used.add(spec.get("template", "linear"))
        for axis in (spec["x"], spec["y"]):
            for path in axis if isinstance(axis, dict) else ():
                assert any(path == out or path.startswith(f"{out}/") for out in outputs), f"{title}: {path}"
    assert used == templates


@pytest.mark.parametrize("path", TEMPLATES, ids=[path.stem for path in TEMPLATES])
def test_templates_are_valid_vega_lite(path: Path) -> None:
    altair = pytest.importorskip("altair", reason="altair, which has Vega-Lite's schema, is not installed")
    jsonschema = pytest.importorskip("jsonschema")
    text = path.read_text("utf-8")
    assert '"<DVC_METRIC_X>"' in text
    spec = json.loads(text.replace('"<DVC_METRIC_DATA>"', "[]"))
    altair.Chart.from_dict(spec)
    with pytest.raises(jsonschema.ValidationError):
        altair.Chart.from_dict({**spec, "spec": {**spec["spec"], "width": "wide"}})
