"""How far reward margins and the confidence of a classifier can be read as probabilities, as figures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from prefdag.report.page.figures import COLOR, svg
from prefdag.report.page.phrases import number, percent
from prefdag.stats.intervals import share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 6  # of as many pairs each as there can be: with few pairs, more bins show noise


def reliability(margin: pd.Series, preference: pd.Series, *, name: str) -> str:
    """A dot a bin of pairs that are stated alike: sigmoid(|margin|) across, the share of labels that agree with its sign up.

    On the dashed diagonal a margin means what it says. Bars are 95% intervals of the share.

    Args:
        margin, preference: (pairs,); the probability that the chosen response is preferred is 1 for hard labels.
    """
    stated = 1 / (1 + np.exp(-margin.abs().to_numpy()))
    agrees = np.select([margin > 0, margin < 0], [preference, 1 - preference], 0.5)
    order = np.argsort(stated, kind="stable")
    dots = [
        (float(stated[part].mean()), float(agrees[part].mean()), *share(agrees[part].tolist()))
        for part in np.array_split(order, min(BINS, max(1, len(order) // 4)))
    ]

    said = "; ".join(f"stated {percent(x)}, true {percent(y)}" for x, y, *_ in dots)
    words = f"Calibration of {number(len(margin))} margins in {len(dots)} bins: {said}."
    return _diagram(dots, (0.5, max(x for x, *_ in dots)), "policy", name, words)


def of_classes(bins: pd.DataFrame, role: str, *, name: str) -> str:
    """A dot a bin of images: the mean confidence in the predicted class across, the share of them that is right up.

    Args:
        bins: of one model, as prefdag/image/evaluate.py writes them; it is drawn in the colour of `role`.
    """
    records = bins.sort_values("confidence").to_dict("records")
    dots = [(row["confidence"], row["accuracy"], row["low"], row["high"]) for row in records]
    said = "; ".join(
        f"stated {percent(x)}, true {percent(y)}, n = {row['n']}" for (x, y, *_), row in zip(dots, records, strict=True)
    )
    return _diagram(
        dots, (0.0, 1.0), role, name, f"Calibration of the {role} in {len(dots)} bins of confidence: {said}."
    )


def _diagram(
    dots: Sequence[tuple[float, float, float, float]], diagonal: tuple[float, float], role: str, name: str, words: str
) -> str:
    """Dots (stated, true, low, high) with their intervals, and the diagonal where stated and true are the same."""

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes.plot(diagonal, diagonal, color=COLOR["muted"], linewidth=0.9, dashes=(3, 3))
        for x, y, low, high in dots:
            axes.plot([x, x], [low, high], color=COLOR[role], linewidth=1.2, alpha=0.5)
            axes.plot([x], [y], color=COLOR[role], marker="o", markersize=4.5)
        axes.grid(axis="y")
        axes.set_ylim(-0.02, 1.02)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))
            axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}%"))

    return svg(draw, (290, 190), (44, 16, 22, 8), name, words)
