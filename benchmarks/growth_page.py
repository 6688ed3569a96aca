"""Generates docs/growth.md and docs/growth.svg from benchmarks/bench_growth.csv. `make docs` writes both.

python -m benchmarks.growth_page > docs/growth.md
"""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, stats

from benchmarks.harness import end_in_one_line, rounded

RESULTS = Path(__file__).with_name("bench_growth.csv")
FIGURE = Path(__file__).resolve().parents[1] / "docs/growth.svg"
METRICS = {"cpu_seconds": "CPU seconds", "peak_mb": "MB"}
EXPONENTS = np.round(np.arange(0.05, 3.005, 0.01), 2)
CONFIDENCE = 0.95
GROWS = 0.2  # growth below this share of the cost at the largest size is taken for noise
SIZES = 4  # at least; fewer do not tell an exponent from a constant
GOAL = 1.1  # of the exponent in rows
SHOWN = 5  # stages in a panel of the figure
TITLES = {
    "rows": "Rows of pairs and images, whole pipeline",
    "many rows": "Rows of pairs, data stages",
    "images": "Images, data stages",
    "tokens": "Tokens of a row",
    "vocabulary": "Tokens in the vocabulary",
    "rank": "Rank of the adapters",
}
INTRO = """# Growth

Generated from `benchmarks/bench_growth.csv` by `make docs`; do not edit. `benchmarks/README.md` explains how to run it.

CPU time and peak memory of each stage against the size of what it gets, on one thread. A stage is a fork of a process that has
imported the libraries, so neither their time nor their memory is included. The rows are random words, and the model is a
Llama of two layers with random weights and a token per word: the figures tell how stages grow, not how long they take with
a real model. Every size is a project of its own, with 250 rows of 64 tokens, 1,024 tokens in the vocabulary and rank 8,
except for what is varied, and with 64 rows where tokens or the vocabulary are. Training validates before and after it
only: with a number of steps as `validate_every`, validations grow with the square of the rows. The machine had other work
meanwhile, which CPU time feels less than the clock does.

A cost is fitted as a + b n^p (least squares of relative errors, a and b not negative); a is what a stage takes however
small n is. The interval of the exponent p holds the values that an F test at 95% does not reject. A cost
that has 80% of its largest value at the smallest size is said not to grow. For rows, the goal is an exponent of at most 1.1: it
is met if the interval is below that, missed if it is above, or if the slope is, and open otherwise. The slope is what was
measured between the two largest sizes, on logarithmic axes and with the constant part: the larger one of time and memory.

![Time and memory against each size](growth.svg)
"""


class Fit(NamedTuple):
    """The cost a + b n^p: its exponent p with an interval, and how far it grows, as a share of the cost at the largest n."""

    exponent: float
    low: float
    high: float
    grows: float


def fit(sizes: Sequence[float], values: Sequence[float]) -> Fit:
    """Fit a + b n^p by relative errors. Needs at least four values, of three sizes."""
    n, weights = np.asarray(sizes, float) / max(sizes), 1 / np.asarray(values, float)
    solved = [optimize.nnls(np.stack([weights, weights * n**p], axis=1), np.ones(len(n))) for p in EXPONENTS]
    squares = np.array([residual**2 for _, residual in solved])
    best, freedom = int(squares.argmin()), len(n) - 3
    bound = squares[best] * (1 + stats.f.ppf(CONFIDENCE, 1, freedom) / freedom)
    inside = EXPONENTS[squares <= bound]
    (a, b), _ = solved[best]
    growth = b * (1 - n.min() ** EXPONENTS[best]) / (a + b)
    return Fit(float(EXPONENTS[best]), float(inside[0]), float(inside[-1]), float(growth))


def page(results: Path = RESULTS) -> str:
    """The page as Markdown."""
    rows = pd.read_csv(results)
    machines = dict.fromkeys(zip(rows["hardware"], rows["versions"], strict=True))
    measured = "".join(f"- {hardware}; {versions}.\n" for hardware, versions in machines)
    axes = {str(axis): part for axis, part in rows.groupby("axis", sort=False) if part["size"].nunique() >= SIZES}
    missing = ", ".join(title for axis, title in TITLES.items() if axis not in axes)
    parts = [INTRO, measured, *(section(axis, part) for axis, part in axes.items())]
    return "\n".join([*parts, *([f"Not measured yet: {missing}.\n"] if missing else [])])


def section(axis: Any, rows: pd.DataFrame) -> str:
    """The table of an axis, and the stages that do not grow along it."""
    lines = list(cells(axis, rows))
    still = sorted(set(rows["stage"]) - {line[0] for line in lines}, key=list(rows["stage"]).index)
    headings = ["stage", "CPU seconds", "exponent", "MB", "exponent", *(["goal"] if "rows" in axis else [])]
    table = [f"| {' | '.join(line)} |" for line in [headings, ["---"] * len(headings), *lines]] if lines else []
    sizes = sorted(set(rows["size"]))
    rounds = rows.groupby("size")["round"].nunique()
    n = " to ".join(map(str, sorted({rounds.min(), rounds.max()})))
    text = f"From {sizes[0]:,} to {sizes[-1]:,}, {len(sizes)} sizes, n = {n} each."
    if still:
        text += f" Neither time nor memory grows: {', '.join(still)}."
    return "\n".join([f"## {TITLES[axis]}\n", textwrap.fill(text, 120), *(["", *table] if table else []), ""])


def cells(axis: str, rows: pd.DataFrame) -> Iterator[list[str]]:
    """A line for each stage that grows."""
    for stage, part in rows.groupby("stage", sort=False):
        fits = {metric: fit(part["size"].tolist(), part[metric].tolist()) for metric in METRICS}
        if max(each.grows for each in fits.values()) < GROWS:
            continue
        medians = part.groupby("size")[list(METRICS)].median()
        line = [str(stage)]
        for metric, each in fits.items():
            line += [f"{rounded(medians[metric].iloc[0])} to {rounded(medians[metric].iloc[-1])}", exponent(each)]
        yield [*line, *([verdict(list(fits.values()), slope(medians))] if "rows" in axis else [])]


def exponent(each: Fit) -> str:
    """The exponent and its interval, if the cost grows."""
    return "" if each.grows < GROWS else f"{each.exponent:.2f} ({each.low:.2f} to {each.high:.2f})"


def slope(medians: pd.DataFrame) -> float:
    """The largest slope of a cost between the two largest sizes, on logarithmic axes."""
    before, last = medians.iloc[-2], medians.iloc[-1]
    return float(np.log(last / before).max() / np.log(medians.index[-1] / medians.index[-2]))


def verdict(fits: Sequence[Fit], last: float) -> str:
    """Whether time and memory grow no worse than linearly: shown, refuted, or neither."""
    growing = [each for each in fits if each.grows >= GROWS]
    found = "met" if all(each.high <= GOAL for each in growing) else "open"
    if last > GOAL or any(each.low > GOAL for each in growing):
        found = "missed"
    return f"exponent <= {GOAL}: {found}; slope {last:.2f}"


def draw(results: Path = RESULTS, figure_path: Path = FIGURE) -> None:
    """Draw time and memory against the sizes: for each axis, the stages that take most at the largest size."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "prefdag", "svg.fonttype": "none", "font.size": 8}
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    rows = pd.read_csv(results)
    axes_names = [axis for axis, sizes in rows.groupby("axis", sort=False)["size"].nunique().items() if sizes >= SIZES]
    figure, panels = plt.subplots(
        2, len(axes_names), figsize=(3 * len(axes_names), 6), layout="constrained", squeeze=False
    )
    for column, axis in enumerate(axes_names):
        part = rows[rows["axis"] == axis]
        for panel, (metric, unit) in zip(panels[:, column], METRICS.items(), strict=True):
            curves = part.pivot_table(index="size", columns="stage", values=metric, aggfunc="median")
            for stage in curves.iloc[-1].sort_values(ascending=False).index[:SHOWN]:
                panel.plot(curves[stage], marker="o", markersize=3, linewidth=1, label=stage)
            panel.set(xscale="log", yscale="log", xlabel=axis, ylabel=unit)
            panel.set_xticks(list(curves.index), [f"{size:,}" for size in curves.index], rotation=45)
            panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.minorticks_off()
            panel.spines[["top", "right"]].set_visible(False)
            panel.legend(frameon=False, fontsize=6)
    figure.savefig(figure_path, metadata={"Date": None})


def main() -> None:
    """Write the figure, and print the page."""
    draw()
    print(page(), end="")


if __name__ == "__main__":
    end_in_one_line(main)
