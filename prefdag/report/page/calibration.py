"""Calibration diagrams of reward margins and of a classifier's confidence."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from prefdag.report.page.figures import COLOR, svg
from prefdag.report.page.numbers import number, percent
from prefdag.stats.intervals import share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 6  # of equal size: with few pairs, more bins would show noise


def of_margins(margin: pd.Series, preference: pd.Series, *, name: str) -> str:
    """One dot per bin of pairs: x is the mean of sigmoid(|margin|), y the share of labels that agree with the margin's sign.

    Dots on the dashed diagonal are calibrated. Bars are 95% intervals of the share.

    Args:
        margin: (pairs,).
        preference: (pairs,); the probability that the chosen response is preferred, 1 for hard labels.
    """
    predicted = 1 / (1 + np.exp(-margin.abs().to_numpy()))
    agrees = np.select([margin > 0, margin < 0], [preference, 1 - preference], 0.5)
    order = np.argsort(predicted, kind="stable")
    dots = [
        (float(predicted[part].mean()), float(agrees[part].mean()), *share(agrees[part].tolist()))
        for part in np.array_split(order, min(BINS, max(1, len(order) // 4)))
    ]

    bins = "; ".join(f"predicted {percent(x)}, observed {percent(y)}" for x, y, *_ in dots)
    description = f"Calibration of {number(len(margin))} margins in {len(dots)} bins: {bins}."
    return _diagram(dots, (0.5, max(x for x, *_ in dots)), "policy", name, description)


def of_bins(bins: Sequence[Mapping[str, float]], *, name: str) -> str:
    """One dot per bin of pairs of a reward model, as prefdag/stats/reward_model.py writes them."""
    dots = [(each["predicted"], each["observed"], each["observed_low"], each["observed_high"]) for each in bins]
    described = "; ".join(
        f"predicted {percent(each['predicted'])}, observed {percent(each['observed'])}, n = {each['n']}"
        for each in bins
    )
    description = f"Calibration of the reward model in {len(dots)} bins: {described}."
    return _diagram(dots, (0.5, max(x for x, *_ in dots)), "policy", name, description)


def of_confidence(bins: pd.DataFrame, role: str, *, name: str) -> str:
    """One dot per bin of images: x is the mean confidence in the predicted class, y the accuracy.

    Args:
        bins: the bins of one model, as prefdag/image/evaluate.py writes them.
        role: the model, which gives the colour.
    """
    records = bins.sort_values("confidence").to_dict("records")
    dots = [(row["confidence"], row["accuracy"], row["low"], row["high"]) for row in records]
    described = "; ".join(
        f"predicted {percent(x)}, observed {percent(y)}, n = {row['n']}"
        for (x, y, *_), row in zip(dots, records, strict=True)
    )
    return _diagram(
        dots, (0.0, 1.0), role, name, f"Calibration of the {role} in {len(dots)} bins of confidence: {described}."
    )


def _diagram(
    dots: Sequence[tuple[float, float, float, float]],
    diagonal: tuple[float, float],
    role: str,
    name: str,
    description: str,
) -> str:
    """Dots (predicted, observed, low, high) with their intervals, and the diagonal on which the two are equal."""

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

    return svg(draw, (290, 190), (44, 16, 22, 8), name, description)
