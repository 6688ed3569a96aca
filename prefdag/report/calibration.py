"""How far reward margins can be read as probabilities, as a figure."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from prefdag.intervals import share
from prefdag.report.figures import COLOR, svg
from prefdag.report.words import number, percent

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

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        highest = max(x for x, *_ in dots)
        axes.plot([0.5, highest], [0.5, highest], color=COLOR["muted"], linewidth=0.9, dashes=(3, 3))
        for x, y, low, high in dots:
            axes.plot([x, x], [low, high], color=COLOR["policy"], linewidth=1.2, alpha=0.5)
            axes.plot([x], [y], color=COLOR["policy"], marker="o", markersize=4.5)
        axes.grid(axis="y")
        axes.set_ylim(-0.02, 1.02)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=4))
            axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}%"))

    said = "; ".join(f"stated {percent(x)}, true {percent(y)}" for x, y, *_ in dots)
    words = f"Calibration of {number(len(margin))} margins in {len(dots)} bins: {said}."
    return svg(draw, (290, 190), (44, 16, 22, 8), name, words)
