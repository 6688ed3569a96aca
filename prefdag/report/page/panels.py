"""What both tracks show in the same form: key numbers, and training curves as panels."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose, log
from typing import TYPE_CHECKING

from markupsafe import Markup

from prefdag.report.page import figures
from prefdag.report.page.figures import Line
from prefdag.report.page.numbers import Estimate, number

if TYPE_CHECKING:
    from prefdag.report.page.results import Histories

RANKED = "Pairs ranked correctly (rewards/accuracies)"  # with the name that trainers log it under


@dataclass(frozen=True)
class Panel:
    """A figure and its title."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class KeyNumber:
    """A number in large type, with its interval and its sample size in small type.

    If `share` is given, it is drawn on a scale from 0 to 100%.
    """

    label: str
    value: str
    detail: str
    count: str
    share: Estimate | None = None


def panel(
    run: "Histories",
    title: str,
    lines: Sequence[Line],
    name: str,
    level: tuple[float, str] | None = None,
    as_percent: bool = False,
) -> list[Panel]:
    """One panel; none if the run has no value in any of these columns."""
    if not figures.has(run.history, run.validation, lines):
        return []
    svg = figures.curves(run.history, run.validation, lines, name=name, level=level, as_percent=as_percent)
    return [Panel(title, Markup(svg))]


def dpo_curves(run: "Histories", name: str) -> list[Panel]:
    """Loss, rewards, margin and accuracy of a DPO run; those that its history has."""
    first = float(run.validation["loss"].iloc[0])  # at step 0 the policy is its reference, and the sigmoid loss is ln 2
    start = (first, "ln 2" if isclose(first, log(2), abs_tol=5e-4) else number(first))
    accuracy = [Line("rewards/accuracy", "policy")]
    return [
        *panel(run, "Loss", [Line("loss", "policy")], f"{name}-loss", level=start),
        *panel(run, "Rewards", chosen_and_rejected("rewards"), f"{name}-rewards", level=(0.0, "")),
        *panel(run, "Reward margin", [Line("rewards/margin", "policy")], f"{name}-margin", level=(0.0, "")),
        *panel(run, RANKED, accuracy, f"{name}-accuracy", (0.5, "chance"), as_percent=True),
    ]


def chosen_and_rejected(metric: str) -> list[Line]:
    """The lines of a metric that has a value for each side of a pair."""
    return [Line(f"{metric}/{side}", side, side) for side in ("chosen", "rejected")]
