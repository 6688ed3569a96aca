"""`dvc plots` draws existing outputs with templates that are valid Vega-Lite."""

import hashlib
import json
import re
import shutil
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from prefdag.runtime.dvc_files import names, read_dag
from prefdag.runtime.yaml import read_yaml

TEMPLATES = sorted((ROOT / ".dvc" / "plots").glob("*.json"))
BUILT_IN = {"linear", "scatter", "confusion"}


@pytest.fixture(scope="module")
def dag() -> dict[str, Any]:
    return read_yaml(ROOT / "dvc.yaml")


@pytest.mark.parametrize("path", TEMPLATES, ids=[path.stem for path in TEMPLATES])
def test_a_shape_is_no_colour(path: Path) -> None:
    """Vega-Lite takes any text for a shape, as a path of SVG, and draws nothing at all if it is none."""
    shapes = re.findall(r'"shape": {(.*?)}\s*}', path.read_text("utf-8"), re.DOTALL)
    assert not any("#" in shape for shape in shapes)


def test_plots_are_drawn_from_outputs(dag: dict[str, Any]) -> None:
    outputs = {out for stage in read_dag(ROOT / "dvc.yaml").values() for out in names(stage, "outs")}
    templates = BUILT_IN | {path.stem for path in TEMPLATES}
    used = set()
    for plot in dag["plots"]:
        ((title, spec),) = plot.items()
        used.add(spec.get("template", "linear"))
        for axis in (spec["x"], spec["y"]):
            for path in axis if isinstance(axis, dict) else ():
                assert any(path == out or path.startswith(f"{out}/") for out in outputs), f"{title}: {path}"
    assert used == templates


@pytest.mark.slow
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


# The page that holds them

PAGE = ROOT / ".dvc/plots/offline.html"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PACKAGES = {  # SHA-256 of build/NAME.min.js in npm's package
    "vega 5.33.1": "463f3db6a40b20e9747b4ed38f37ed0add508838f9141b1cf8366784b07b30c8",
    "vega-lite 5.23.0": "58c27358e26f2d319cf62f45bc17a4c8362f08645001df2ec8d341eee4097c7f",
    "vega-embed 6.29.0": "12d02acfbe3ec59ef9a37dd4822a2e04e2961b5bbb671bbe661d2221715b99da",
}


def test_dvc_uses_the_page_that_holds_vega_itself() -> None:
    config = ConfigParser()
    config.read(ROOT / ".dvc/config")
    assert ROOT / ".dvc" / config["plots"]["html_template"] == PAGE
    html = PAGE.read_text("utf-8")
    scripts = re.findall(r'<script data-package="(.*?)">(.*?)</script>', html, re.DOTALL)
    assert {name: hashlib.sha256(code.encode()).hexdigest() for name, code in scripts} == PACKAGES
    frame = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert "{plot_divs}" in frame
    assert "{scripts}" not in frame, "DVC's own scripts come from a server"
    assert "Redistribution and use in source and binary forms" in frame
    assert not re.search("(src|href)=", frame)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on this machine")
def test_plots_are_drawn_without_a_network(tmp_path: Path) -> None:
    """Every template, with a mark for every row, and no request but for the page."""
    from dvc_render.html import render_html
    from dvc_render.vega import VegaRenderer
    from playwright.sync_api import sync_playwright

    rows = [
        {"rev": "workspace", "model": model, "accuracy": 0.1 * i, "class": str(i), "low": 0.0, "high": 0.3}
        for i, model in enumerate(("base", "reference", "policy", "control"))
    ]
    names = ["linear", *(path.stem for path in TEMPLATES)]
    renderers = [
        VegaRenderer(rows, name, template=name, template_dir=str(ROOT / ".dvc/plots"), x="accuracy", y="class")
        for name in names
    ]
    render_html(renderers, tmp_path / "index.html", html_template=str(PAGE))
    requests: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.goto((tmp_path / "index.html").as_uri())
        page.wait_for_function(f"document.querySelectorAll('canvas').length === {len(names)}", timeout=20_000)
        sizes = page.eval_on_selector_all("canvas", "all => all.map(each => each.width * each.height)")
        browser.close()
    assert [url for url in requests if not url.startswith("data:")] == [(tmp_path / "index.html").as_uri()]
    assert all(size > 100 * 60 for size in sizes), dict(zip(names, sizes, strict=True))
