"""The frontier: how well each experiment does, plotted against its KL to the reference.

    points = from_dvc()          # or from_mlflow(), which gives the same numbers
    html = render(points)

DPO trades divergence for reward: a smaller beta lets the policy move further from the reference (arXiv:2305.18290,
section 6.1). A run is one point of this trade-off; a sweep shows its shape. The y axes have rates, which mean the same for
every beta. Rewards do not: they are beta times a log-ratio, so those of different betas are never on one axis.
"""

import logging
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import Markup

from prefdag.lifecycle.errors import DataError
from prefdag.report.page.environment import environment
from prefdag.report.page.figures import COLOR, svg
from prefdag.report.page.numbers import Estimate, number, percent, plural, spaced
from prefdag.report.page.settings import loss_name
from prefdag.runtime.yaml import flatten
from prefdag.tracking.runs import pipelines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = logging.getLogger(__name__)

METRICS = {
    "text": "reports/text/metrics.json",
    "image": "reports/image/metrics.json",
    "win_rate": "reports/text/win_rate.json",
}
# For each track, the metric on the x axis with its unit, and the metrics on the y axis by title. Keys as in MLflow.
TRACKS = {
    "Language model": (
        ("text/heldout/kl", "nats per token"),
        {"Pairs ranked correctly": "text/heldout/rewards/accuracy"},
    ),
    "Image classifier": (("image/kl", "nats per image"), {"Accuracy": "image/policy/accuracy"}),
}
ENDS = ("", "_low", "_high")
MARGIN = "text/heldout/rewards/margin"  # only in the table of numbers, frontier.csv
# An experiment has one of these, by its kind of judge. Rates of different judges are not comparable: each has its own figure.
WIN_RATE = re.compile(r"win_rate/(\w+)/greedy/win_rate")
UNFINISHED = ("Queued", "Running", "Failed")
KEYS = [
    *(kl for (kl, _), _ in TRACKS.values()),
    *(f"{key}{end}" for _, measures in TRACKS.values() for key in measures.values() for end in ENDS),
    *(f"{MARGIN}{end}" for end in ENDS),
]


def from_dvc() -> pd.DataFrame:
    """The workspace and every experiment on the current commit, as in `dvc exp show`. Columns as in `points`."""
    import dvc.api

    experiments = []
    for row in dvc.api.exp_show():  # the workspace, then the commit, then its experiments
        if row.get("State") in UNFINISHED:  # such an experiment has the metrics of the commit
            continue
        rev = None if row["rev"] == "workspace" else row["rev"]
        name = row.get("Experiment") or row["rev"]
        metrics = {track: _metrics(path, rev) for track, path in METRICS.items()}
        if metrics["text"] and metrics["image"]:
            values = {key.replace(".", "/"): value for key, value in flatten(metrics).items()}
            experiments.append((name, dvc.api.params_show(rev=rev), values))
        else:
            log.warning(
                "%s: left out: it has no metrics, or they are not in DVC's cache (`dvc exp pull`, `dvc pull`)", name
            )
    return points(experiments)


def _metrics(path: str, rev: str | None) -> Mapping[str, Any]:
    """A file of metrics of a revision; empty if it is neither in Git nor in DVC's cache."""
    import dvc.api

    try:
        metrics: Mapping[str, Any] = dvc.api.metrics_show(path, rev=rev)
    except FileNotFoundError:
        return {}
    return metrics


def from_mlflow() -> pd.DataFrame:
    """Every run with the tag kind=pipeline, oldest first. Columns as in `points`."""
    return points(pipelines())


def _complete(name: str, params: Mapping[str, Any], metrics: Mapping[str, Any]) -> bool:
    missing = [*({"beta"} - params.keys()), *(key for key in KEYS if key not in metrics)]
    if missing:
        log.warning("%s: left out: it has no %s", name, missing[0])
    return not missing


def points(experiments: Iterable[tuple[str, Mapping[str, Any], Mapping[str, Any]]]) -> pd.DataFrame:
    """One row per experiment: `name`, `beta`, `loss`, `KEYS`, and the win rates of every judge, missing for another judge.

    If several experiments have the same numbers to four digits, only the first is kept.

    Args:
        experiments: name, parameters, and metrics by key of each.

    Raises:
        DataError: no experiment has a beta and all of `KEYS`.
    """
    rows = [
        {
            "name": name,
            "beta": float(params["beta"]),
            "loss": _loss(params),
            **{key: metrics[key] for key in KEYS},
            **{f"{key}{end}": metrics[f"{key}{end}"] for key in metrics if WIN_RATE.fullmatch(key) for end in ENDS},
        }
        for name, params, metrics in experiments
        if _complete(name, params, metrics)
    ]
    if not rows:
        raise DataError("no finished experiment found; `make sweep BETAS=0.1,0.3,0.5` runs some")
    table = pd.DataFrame(rows)
    # A repeated run gives the same numbers, except for rounding on other hardware. As printed, the runs are one point.
    numbers = [str(key) for key in table if key not in ("name", "beta", "loss")]
    printed = table.assign(**{key: table[key].map("{:.4g}".format) for key in numbers})
    return table[~printed.duplicated(["beta", "loss", *numbers])].reset_index(drop=True)


def tracks(table: pd.DataFrame) -> dict[str, tuple[tuple[str, str], dict[str, str]]]:
    """`TRACKS` with the win rates of the table's judges."""
    judges = {match[1]: match[0] for key in map(str, table) if (match := WIN_RATE.fullmatch(key))}
    rates = {f"Win rate ({spaced(judge)} judge)": key for judge, key in sorted(judges.items())}
    return {
        name: (kl, measures | (rates if kl[0].startswith("text/") else {})) for name, (kl, measures) in TRACKS.items()
    }


def _loss(params: Mapping[str, Any]) -> str:
    """The loss in words. MLflow stores a weighted sum as one parameter per term."""
    terms = {key.removeprefix("loss."): float(value) for key, value in params.items() if key.startswith("loss.")}
    return loss_name(params.get("loss", terms))


def render(table: pd.DataFrame) -> str:
    """The page: one figure per metric, and the points as a table."""
    known = tracks(table)
    rows = [
        {
            "name": row["name"],
            "beta": row["beta"],
            "loss": row["loss"],
            "cells": [
                (
                    number(float(row[kl]), 4),
                    [None if math.isnan(row[key]) else Estimate.of(row, key) for key in measures.values()],
                )
                for (kl, _), measures in known.values()
            ],
        }
        for row in ({str(key): value for key, value in each.items()} for each in table.to_dict("records"))
    ]
    heads = [(track, list(measures)) for track, (_, measures) in known.items()]
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
            "title": f"{track}: {title[0].lower()}{title[1:]} against KL, {unit}",
            "svg": Markup(figure(table, kl, key, name=key.replace("/", "-"))),
        }
        for track, ((kl, unit), measures) in tracks(table).items()
        for title, key in measures.items()
    ]


def figure(table: pd.DataFrame, kl: str, key: str, *, name: str) -> str:
    """One dot per experiment that has `key`, labelled with its beta: x is the column `kl`, y is `key` with its 95% interval."""
    ordered = table[table[key].notna()].sort_values(kl)

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
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}%"))

    described = "; ".join(
        f"beta {beta:g}: KL {at:.4g}, {percent(value)}" for beta, at, value in ordered[["beta", kl, key]].to_numpy()
    )
    return svg(
        draw,
        (420, 260),
        (48, 24, 26, 10),
        name,
        f"{len(ordered)} {plural('experiment', len(ordered))} by KL: {described}.",
    )
