"""The key numbers and the figures of the image classifiers."""

from typing import TYPE_CHECKING

from markupsafe import Markup

from prefdag.report.page import calibration
from prefdag.report.page.figures import Line
from prefdag.report.page.numbers import Estimate, number, percent, percent_span
from prefdag.report.page.panels import RANKED, KeyNumber, Panel, dpo_curves, panel

if TYPE_CHECKING:
    from prefdag.report.page.results import ImageTrack


def key_numbers(image: "ImageTrack") -> list[KeyNumber]:
    """The accuracy of each model, and the ranking accuracy."""
    count = f"n = {number(image.metrics['n_test'])} images"
    models = {"policy": "Accuracy, policy", "reference": "Accuracy, reference", "control": "Accuracy, control"}
    shares = {label: Estimate.of(image.metrics[model], "accuracy") for model, label in models.items()}
    shares[RANKED] = Estimate.of(image.metrics["rewards"], "accuracy")
    return [KeyNumber(label, percent(e.value), percent_span(e), count, e) for label, e in shares.items()]


def curves(image: "ImageTrack") -> list[Panel]:
    """Training curves of the policy, its reference and its control."""
    return [
        *dpo_curves(image.dpo, "image"),
        *panel(image.dpo, "Policy: accuracy", [Line("accuracy", "policy")], "image-policy", as_percent=True),
        *panel(image.warmup, "Reference: accuracy", [Line("accuracy", "reference")], "image-warmup", as_percent=True),
        *panel(image.control, "Control: accuracy", [Line("accuracy", "control")], "image-control", as_percent=True),
    ]


def confidence(image: "ImageTrack") -> list[Panel]:
    """Calibration of each model's confidence."""
    bins = {str(model): part for model, part in image.calibration.groupby("model")}
    return [
        Panel(
            f"{model.capitalize()}: calibration error {percent(image.metrics[model]['calibration_error'])}",
            Markup(calibration.of_confidence(bins[model], model, name=f"calibration-{model}")),
        )
        for model in ("reference", "policy", "control")
    ]
