"""The reward models in the report: how they rank held-out pairs, calibration, and length."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from prefdag.report.page import calibration
from prefdag.report.page.numbers import Estimate, number, percent, percent_span, signed, signed_span
from prefdag.report.page.panels import Panel

RANKED = {
    "accuracy": "Pairs ranked right",
    "length_controlled": "– if the preferred response were the longer one as often as the shorter one",
}
BY_LENGTH = {
    "chosen_longer": "– whose preferred response is longer",
    "chosen_shorter": "– whose preferred response is shorter",
    "same_length": "– of equal length",
    "longer_wins": "Control: the longer response, or a guess",
}


def view(figures: Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
    """The content of the section; None without a reward model.

    Args:
        figures: from `prefdag.stats.reward_model`.
        name: of the figure.
    """
    if figures is None:
        return None
    ranked = [(title, figures["n"], Estimate.of(figures, key)) for key, title in RANKED.items() if key in figures]
    length = figures.get("length", {})
    ranked += [
        (title, length[k]["n"], Estimate.of(length[k], "accuracy")) for k, title in BY_LENGTH.items() if k in length
    ]
    rows = [{"name": title, "n": n, "value": percent(e.value), "span": percent_span(e)} for title, n, e in ranked]
    if "correlation" in length:
        each = Estimate.of(length, "correlation")
        title = "Correlation of reward and length"
        rows.append(
            {"name": title, "n": 2 * figures["n"], "value": signed(each.value, 2), "span": signed_span(each, 2)}
        )
    return {
        "beats_chance": figures["accuracy_low"] > 0.5,
        "rows": rows,
        "calibration_error": number(figures["calibration_error"], 3),
        "panels": [Panel("Calibration", Markup(calibration.of_bins(figures["bins"], name=name)))],
    }
