"""The frontier: what each experiment gained, plotted against its KL to the reference.

    points = from_dvc()          # or from_mlflow(), which gives the same numbers
    html = render(points)

DPO trades divergence for reward: a smaller beta lets the policy move further from the reference (arXiv:2305.18290,
section 6.1). A run is one point of this trade-off; a sweep shows its shape.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import Markup

from prefdag.lifecycle.errors import DataError
from prefdag.report.page.environment import environment
from prefdag.report.page.figures import COLOR, svg
from prefdag.report.page.numbers import Estimate, number, percent, signed
from prefdag.report.page.settings import loss_name
from prefdag.runtime.yaml import flatten
from prefdag.tracking.runs import pipelines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS = {"text": "reports/text/metrics.json", "image": "reports/image/metrics.json"}
# For each track, the metric on the x axis with its unit, and the metrics on the y axis by title. Keys as in MLflow.
TRACKS = {
    "Language model": (
        ("text/heldout/kl", "nats per token"),
        {
            "Pairs ranked correctly": "text/heldout/rewards/accuracy",
            "Mean reward margin": "text/heldout/rewards/margin",
        },
    ),
    "Image classifier": (("image/kl", "nats per image"), {"Accuracy": "image/policy/accuracy"}),
}
UNFINISHED = ("Queued", "Running", "Failed")
KEYS = [
    *(kl for (kl, _), _ in TRACKS.values()),
    *(f"{key}{end}" for _, measures in TRACKS.values() for key in measures.values() for end in ("", "_low", "_high")),
]


def from_dvc() -> pd.DataFrame:
    """The workspace and every experiment on the current commit, as in `dvc exp show`. Columns as in `points`."""
    import dvc.api

    experiments = []
    for row in dvc.api.exp_show():  # the workspace, then the commit, then its experiments
        if row.get("State") in UNFINISHED:  # such an experiment has the metrics of the commit
            continue
        rev = None if row["rev"] == "workspace" else row["rev"]
        try:
            metrics = {track: dvc.api.metrics_show(path, rev=rev) for track, path in METRICS.items()}
        except FileNotFoundError:  # a commit from before the pipeline ran
            continue
        if all(metrics.values()):
            values = {key.replace(".", "/"): value for key, value in flatten(metrics).items()}
            experiments.append((row.get("Experiment") or row["rev"], dvc.api.params_show(rev=rev), values))
    return points(experiments)


def from_mlflow() -> pd.DataFrame:
    """Every run with the tag kind=pipeline, oldest first. Columns as in `points`."""
    return points(pipelines())


def points(experiments: Iterable[tuple[str, Mapping[str, Any], Mapping[str, Any]]]) -> pd.DataFrame:
    """One row per experiment: `name`, `beta`, `loss` and `KEYS`.

    If several experiments have the same numbers to four digits, only the first is kept.

    Args:
        experiments: name, parameters, and metrics by key of each.

    Raises:
        DataError: no experiment has all of `KEYS`.
    """
    rows = [
        {
            "name": name,
            "beta": float(params["beta"]),
            "loss": _loss(params),
            **{key: metrics[key] for key in KEYS},
        }
        for name, params, metrics in experiments
        if all(key in metrics for key in KEYS)
    ]
    if not rows:
        raise DataError("no finished experiment found; `make sweep BETAS=0.1,0.3,0.5` runs some")
    table = pd.DataFrame(rows)
    # A repeated run gives the same numbers, except for rounding on other hardware. As printed, the runs are one point.
    printed = table.assign(**{key: table[key].map("{:.4g}".format) for key in KEYS})
    return table[~printed.duplicated(["beta", "loss", *KEYS])].reset_index(drop=True)


def _loss(params: Mapping[str, Any]) -> str:
    """The loss in words. MLflow stores a weighted sum as one parameter per term."""
    terms = {key.removeprefix("loss."): float(value) for key, value in params.items() if key.startswith("loss.")}
    return loss_name(params.get("loss", terms))


def render(table: pd.DataFrame) -> str:
    """The page: one figure per metric, and the points as a table."""
    rows = [
        {
            "name": row["name"],
            "beta": row["beta"],
            "loss": row["loss"],
            "cells": [
                (number(float(row[kl]), 4), [(Estimate.of(row, key), "accuracy" in key) for key in measures.values()])
                for (kl, _), measures in TRACKS.values()
            ],
        }
        for row in ({str(key): value for key, value in each.items()} for each in table.to_dict("records"))
    ]
    heads = [(track, list(measures)) for track, (_, measures) in TRACKS.items()]
    return (
        environment(autoescape=True)
        .get_template("frontier.html.j2")
        .render(figures=figures(table), rows=rows, heads=heads)
    )


def panels(table: pd.DataFrame) -> str:
    """Only the figures, for use in another page."""
    return environment(autoescape=True).get_template("frontier_figures.html.j2").render(figures=figures(table))


def figures(table: pd.DataFrame) -> list[dict[str, Any]]:
    """One figure per metric, with its title."""
    return [
        {
            "title": f"{track}: {title.lower()} against KL, {unit}",
            "svg": Markup(figure(table, kl, key, percentage="accuracy" in key, name=key.replace("/", "-"))),
        }
        for track, ((kl, unit), measures) in TRACKS.items()
        for title, key in measures.items()
    ]


def figure(table: pd.DataFrame, kl: str, key: str, *, percentage: bool, name: str) -> str:
    """One dot per experiment, labelled with its beta: x is the column `kl`, y is `key` with its 95% interval."""
    ordered = table.sort_values(kl)

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        x, y = ordered[kl], ordered[key]
        axes.vlines(x, ordered[f"{key}_low"], ordered[f"{key}_high"], color=COLOR["policy"], linewidth=1.2, alpha=0.45)
        axes.plot(x, y, color=COLOR["policy"], linewidth=0.8, alpha=0.6)
        axes.plot(x, y, color=COLOR["policy"], marker="o", markersize=4.5, linestyle="none")
        for at, value, beta in zip(x, y, ordered["beta"], strict=True):
            axes.annotate(
                f"β {beta:g}", (at, value), (5, 5), textcoords="offset points", color=COLOR["ink"], fontsize=9
            )
        axes.grid(axis="y")
        axes.set_xmargin(0.12)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        if percentage:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}%"))

    write = percent if percentage else signed
    described = "; ".join(
        f"beta {beta:g}: KL {at:.4g}, {write(value)}" for beta, at, value in ordered[["beta", kl, key]].to_numpy()
    )
    return svg(draw, (420, 260), (48, 24, 26, 10), name, f"{len(ordered)} experiments by KL: {described}.")
