"""How stages grow: the fitted exponents, the page, and a measurement of a small project."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from paths import ROOT

from benchmarks import growth_page, harness
from benchmarks.growth_page import fit

SIZES = [250, 500, 1_000, 2_000, 4_000]
MEASURE = """
from pathlib import Path
from benchmarks import bench_growth, growth_project
bench_growth.LIBRARIES = ("pandas",)
growth_project.write_model = lambda *_: None  # which these stages do not read
bench_growth.AXES = {"rows": ((40, 80), bench_growth.Size(), ("download_pairs", "download_evals"))}
bench_growth.run(["rows"], 2, Path("growth.csv"))
"""


def costs(exponent: float, constant: float = 1.0) -> list[float]:
    """A constant, and as much again at the largest size."""
    return [constant + (n / SIZES[-1]) ** exponent for n in SIZES]


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5, 2.0])
def test_a_constant_does_not_hide_the_exponent(exponent: float) -> None:
    """A straight line through the logarithms would give half of it."""
    found = fit(SIZES, costs(exponent))
    assert found.exponent == pytest.approx(exponent, abs=0.011)
    assert found.low <= exponent + 1e-9 <= found.high + 0.011
    line = np.polyfit(np.log(SIZES), np.log(costs(exponent)), 1)[0]
    assert line < 0.75 * exponent


def test_the_interval_widens_with_noise() -> None:
    noise = 1 + np.random.default_rng(0).normal(0, 0.05, 2 * len(SIZES))
    found = fit([*SIZES, *SIZES], np.array([*costs(1.0), *costs(1.0)]) * noise)
    assert found.low < 1.0 < found.high
    assert found.high - found.low > 0.1


def test_a_constant_cost_does_not_grow() -> None:
    assert fit(SIZES, [2.0, 2.1, 1.95, 2.05, 2.0]).grows < growth_page.GROWS


def results(folder: Path, seconds: list[float]) -> Path:
    path = folder / "growth.csv"
    for size, value in zip(SIZES, seconds, strict=True):
        for stage, cost in (("format_pairs", value), ("download_evals", 0.2)):
            row = {"axis": "rows", "size": size, "round": 0, "stage": stage, "cpu_seconds": cost, "peak_mb": 10.0}
            harness.append(path, {**row, "hardware": "a machine", "versions": "python"})
    return path


@pytest.mark.parametrize(("exponent", "verdict"), [(1.0, "met"), (1.5, "missed")])
def test_the_page_says_what_grows_faster_than_rows(exponent: float, verdict: str, tmp_path: Path) -> None:
    made = growth_page.page(results(tmp_path, costs(exponent)))
    assert f"| exponent <= 1.1: {verdict}; slope " in made
    assert "Neither time nor memory grows: download_evals." in made
    assert "Not measured yet: Rows of pairs, data stages, Images, " in made
    assert "- a machine; python.\n" in made


def test_a_steep_last_step_misses_the_goal() -> None:
    """As a step function would have it, of which no exponent is sure."""
    unsure = growth_page.Fit(1.0, 0.05, 3.0, 0.5)
    medians = pd.DataFrame({"cpu_seconds": [1.0, 3.0], "peak_mb": [5.0, 5.0]}, index=[100, 200])
    assert growth_page.slope(medians) == pytest.approx(np.log2(3))
    assert growth_page.verdict([unsure], growth_page.slope(medians)) == "exponent <= 1.1: missed; slope 1.58"
    assert growth_page.verdict([unsure], 1.0) == "exponent <= 1.1: open; slope 1.00"


@pytest.mark.slow
def test_the_page_matches_the_results() -> None:
    assert (ROOT / "docs/growth.md").read_text("utf-8") == growth_page.page(), "run `make docs`"


@pytest.mark.slow
def test_the_figure_is_the_same_every_time(tmp_path: Path) -> None:
    path = results(tmp_path, costs(1.0))
    for name in ("one.svg", "two.svg"):
        growth_page.draw(path, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert b"format_pairs" in (tmp_path / "one.svg").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_what_is_measured_is_not_measured_again(tmp_path: Path) -> None:
    def measure() -> pd.DataFrame:
        subprocess.run(
            [sys.executable, "-c", MEASURE], cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, check=True
        )
        return pd.read_csv(tmp_path / "growth.csv")

    first = measure()
    assert len(first) == 2 * 2 * 2
    assert first[["seconds", "cpu_seconds", "peak_mb"]].gt(0).all(axis=None)
    first[:6].to_csv(tmp_path / "growth.csv", index=False)
    second = measure()
    pd.testing.assert_frame_equal(second[:6], first[:6])
    assert second[6:]["size"].tolist() == [80, 80]
    assert (second[6:]["seconds"] != first[6:]["seconds"]).all()


@pytest.mark.slow
def test_a_stage_that_fails_ends_in_one_line(tmp_path: Path) -> None:
    call = f"run_forked('label_pairs', Path({str(tmp_path)!r}))"
    code = f"from pathlib import Path; from benchmarks.bench_growth import run_forked; {call}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert "PrefdagError: label_pairs: ended with exit code 1: " in done.stderr
