"""What the image classifiers get right and wrong, class by class."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from prefdag.report.page.figures import COLOR, intervals, svg
from prefdag.report.page.phrases import Estimate, percent, percent_span

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from prefdag.report.page.results import ImageTrack

MODELS = {"reference": "o", "policy": "s", "control": "^"}  # with their markers, which tell them apart without colour
MOST = 20  # classes that are shown
LONGEST = 14  # characters of a class's name beside a figure


def accuracies(image: "ImageTrack", *, name: str) -> str:
    """Reference, policy and control, each with its interval."""
    rows = [
        {"label": model, "role": model, **{end: getattr(estimate, end) for end in ("value", "low", "high")}}
        for model in MODELS
        for estimate in [Estimate.of(image.metrics[model], "accuracy")]
    ]
    return intervals(pd.DataFrame(rows), name=name)


def shown(image: "ImageTrack") -> list[str]:
    """The classes in their order; of more than `MOST`, those of which the policy gets the smallest shares right."""
    of_policy = image.by_class[image.by_class["model"] == "policy"]
    if len(image.classes) <= MOST:
        return image.classes
    least = set(of_policy.sort_values("accuracy", kind="stable")["class"].head(MOST))
    return [name for name in image.classes if name in least]


def by_class(image: "ImageTrack", *, name: str) -> str:
    """A row a class: the share that each model gets right, with its 95% interval."""
    rows: dict[str, dict[str, Any]] = {}
    for row in image.by_class.to_dict("records"):
        rows.setdefault(row["class"], {})[row["model"]] = row
    labels = [label for label in shown(image) if label in rows]
    names = {label: label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…" for label in labels}

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        beside: dict[str, Any] = {"va": "center", "transform": axes.get_yaxis_transform()}
        for y, label in enumerate(labels):
            for offset, (model, marker) in zip((-0.24, 0.0, 0.24), MODELS.items(), strict=True):
                row, at, color = rows[label][model], y + offset, COLOR[model]
                axes.plot([row["low"], row["high"]], [at, at], color=color, linewidth=1.6, alpha=0.6)
                axes.plot([row["accuracy"]], [at], color=color, marker=marker, markersize=5)
            axes.text(-0.03, y, names[label], ha="right", **beside)
            axes.text(
                1.03, y, f"n = {rows[label]['policy']['n']}", ha="left", color=COLOR["muted"], fontsize=9.5, **beside
            )
        for x, (model, marker) in zip((0.02, 0.38, 0.68), MODELS.items(), strict=True):
            axes.plot(
                [x],
                [-0.92],
                color=COLOR[model],
                marker=marker,
                markersize=5,
                clip_on=False,
                transform=beside["transform"],
            )
            axes.text(x + 0.03, -0.92, model, ha="left", color=COLOR[model], **beside)
        for edge in np.arange(len(labels) - 1) + 0.5:
            axes.axhline(edge, color=COLOR["grid"], linewidth=0.8)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_yticks([])
        axes.grid(axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}%"))

    words = "; ".join(
        f"{label}: "
        + ", ".join(
            f"{model} {percent(row['accuracy'])} ({percent_span(Estimate(row['accuracy'], row['low'], row['high']))})"
            for model, row in rows[label].items()
        )
        for label in labels
    )
    left = 14 + 6.5 * max(map(len, names.values()), default=0)
    size = 380, 54 + 33 * len(labels)
    return svg(draw, size, (left, 56, 22, 32), name, f"Accuracies by class, with 95% intervals. {words}.")


def confusion(image: "ImageTrack") -> dict[str, Any]:
    """The policy's confusion matrix as a table: `classes`, and in `rows` of each its name, its images and its cells.

    A cell has its `count`, whether it is `right`, and its `weight` as a share of the largest count of one mistake.
    """
    names = shown(image)
    part = image.confusion[image.confusion["model"] == "policy"]
    counts = {(row["true"], row["predicted"]): int(row["count"]) for row in part.to_dict("records")}
    worst = max((count for (true, predicted), count in counts.items() if true != predicted), default=1)
    images = part.groupby("true")["count"].sum()
    rows = [
        {
            "name": true,
            "images": int(images.get(true, 0)),
            "cells": [
                {"count": count, "right": true == predicted, "weight": 0.0 if true == predicted else count / worst}
                for predicted in names
                for count in [counts.get((true, predicted), 0)]
            ],
        }
        for true in names
    ]
    return {"classes": names, "rows": rows}
