"""The accuracy of the image classifiers, overall and by class, and the confusion matrix."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from prefdag.report.page.figures import COLOR, svg
from prefdag.report.page.numbers import Estimate, percent, percent_span

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from prefdag.report.page.results import ImageTrack

MODELS = {"reference": "o", "policy": "s", "control": "^"}  # the markers tell the models apart without colour
MOST = 20  # classes shown
LONGEST = 14  # characters of a class name in a figure


def accuracies(image: "ImageTrack", *, name: str) -> str:
    """The accuracy of reference, policy and control, with intervals."""
    rows = [
        {"label": model, "role": model, **{end: getattr(estimate, end) for end in ("value", "low", "high")}}
        for model in MODELS
        for estimate in [Estimate.of(image.metrics[model], "accuracy")]
    ]
    return intervals(pd.DataFrame(rows), name=name)


def intervals(rows: pd.DataFrame, *, name: str) -> str:
    """One dot with its 95% interval per row. Columns: label, role, and value, low and high as shares."""
    records = rows.to_dict("records")

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        for y, row in enumerate(records):
            color = COLOR[row["role"]]
            axes.plot([row["low"], row["high"]], [y, y], color=color, linewidth=2.2)
            axes.plot([row["value"]], [y], color=color, marker="o", markersize=6.5)
            axes.text(
                -0.03, y, row["label"], ha="right", va="center", color=color, transform=axes.get_yaxis_transform()
            )
            span = percent_span(Estimate(row["value"], row["low"], row["high"]))
            right: dict[str, Any] = {"va": "center", "transform": axes.get_yaxis_transform()}
            axes.text(1.04, y, percent(row["value"]), ha="left", **right)
            axes.text(1.27, y, span, ha="left", color=COLOR["muted"], fontsize=9.5, **right)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks([])
        axes.margins(x=0.12)
        axes.grid(axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}%"))

    described = "; ".join(
        f"{row['label']} {percent(row['value'])}, 95% interval {percent(row['low'])} to {percent(row['high'])}"
        for row in records
    )
    return svg(draw, (380, 34 + 32 * len(rows)), (66, 108, 22, 8), name, f"Accuracies with 95% intervals. {described}.")


def shown(image: "ImageTrack") -> list[str]:
    """The classes in their order; if there are more than `MOST`, those on which the policy is least accurate."""
    of_policy = image.by_class[image.by_class["model"] == "policy"]
    if len(image.classes) <= MOST:
        return image.classes
    least = set(of_policy.sort_values("accuracy", kind="stable")["class"].head(MOST))
    return [name for name in image.classes if name in least]


def by_class(image: "ImageTrack", *, name: str) -> str:
    """The accuracy of each model by class, with 95% intervals; one row per class."""
    rows: dict[str, dict[str, Any]] = {}
    for row in image.by_class.to_dict("records"):
        rows.setdefault(row["class"], {})[row["model"]] = row
    labels = [label for label in shown(image) if label in rows]
    names = {label: label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…" for label in labels}

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        text_style: dict[str, Any] = {"va": "center", "transform": axes.get_yaxis_transform()}
        for y, label in enumerate(labels):
            for offset, (model, marker) in zip((-0.24, 0.0, 0.24), MODELS.items(), strict=True):
                row, at, color = rows[label][model], y + offset, COLOR[model]
                axes.plot([row["low"], row["high"]], [at, at], color=color, linewidth=1.6, alpha=0.6)
                axes.plot([row["accuracy"]], [at], color=color, marker=marker, markersize=5)
            axes.text(-0.03, y, names[label], ha="right", **text_style)
            axes.text(
                1.03,
                y,
                f"n = {rows[label]['policy']['n']}",
                ha="left",
                color=COLOR["muted"],
                fontsize=9.5,
                **text_style,
            )
        for x, (model, marker) in zip((0.02, 0.38, 0.68), MODELS.items(), strict=True):
            axes.plot(
                [x],
                [-0.92],
                color=COLOR[model],
                marker=marker,
                markersize=5,
                clip_on=False,
                transform=text_style["transform"],
            )
            axes.text(x + 0.03, -0.92, model, ha="left", color=COLOR[model], **text_style)
        for edge in np.arange(len(labels) - 1) + 0.5:
            axes.axhline(edge, color=COLOR["grid"], linewidth=0.8)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_yticks([])
        axes.grid(axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}%"))

    described = "; ".join(
        f"{label}: "
        + ", ".join(
            f"{model} {percent(row['accuracy'])} ({percent_span(Estimate(row['accuracy'], row['low'], row['high']))})"
            for model, row in rows[label].items()
        )
        for label in labels
    )
    left = 14 + 6.5 * max(map(len, names.values()), default=0)
    size = 380, 54 + 33 * len(labels)
    return svg(draw, size, (left, 56, 22, 32), name, f"Accuracies by class, with 95% intervals. {described}.")


def confusion(image: "ImageTrack") -> dict[str, Any]:
    """The policy's confusion matrix: `classes`, and `rows` with the name, the number of images and the cells of each class.

    A cell has its `count`, whether it is `right` (on the diagonal), and its `weight`: the count as a share of the largest
    count off the diagonal.
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
