"""The sentences on the image classifiers, which the report and the model card print unchanged."""

from collections.abc import Mapping
from typing import Any

from prefdag.report.page.conclusions import Conclusion, paired_tone
from prefdag.report.page.numbers import Estimate, number, p_value, percent, percent_span, points


def conclusion(metrics: Mapping[str, Any]) -> Conclusion:
    """What reports/image/metrics.json shows."""
    reference, policy, control = (
        Estimate.of(metrics[model], "accuracy") for model in ("reference", "policy", "control")
    )
    against_reference, against_control = (metrics[f"policy_against_{other}"] for other in ("reference", "control"))
    tone = paired_tone(against_reference)
    headline = {
        "better": "DPO made the classifier more accurate.",
        "unclear": "No significant change in the classifier’s accuracy.",
        "worse": "DPO made the classifier less accurate.",
    }[tone]
    n = metrics["n_test"]
    correct = round(n * reference.value)
    return Conclusion(
        tone,
        headline,
        (
            f"Accuracy on {number(n)} test images {_change(reference, policy)}.",
            f"DPO fixed {number(against_reference['alone_right'])} of the reference’s {number(n - correct)} errors and "
            f"introduced {number(against_reference['other_alone_right'])} new ones among its {number(correct)} correct "
            f"predictions. {difference(against_reference, 'reference')}",
            f"A control, trained with cross-entropy on the same budget, reaches {percent(control.value)} (95% "
            f"interval {percent_span(control)}). The policy alone is right on "
            f"{_images(against_control['alone_right'])}, the control alone on "
            f"{_images(against_control['other_alone_right'])}. {difference(against_control, 'control')}",
            f"KL to the reference: {number(metrics['kl'], 4)} nats per image.",
        ),
    )


def compared(comparison: Mapping[str, float], other: str) -> str:
    """How the policy's accuracy compares with another model's, in words."""
    return {
        "better": f"the policy is more accurate than the {other}",
        "unclear": "no significant difference",
        "worse": f"the policy is less accurate than the {other}",
    }[paired_tone(comparison)]


def difference(comparison: Mapping[str, float], other: str) -> str:
    """The policy's accuracy minus another model's, its interval, the test, and the conclusion."""
    low, high = points(comparison["difference_low"]), points(comparison["difference_high"])
    return (
        f"The difference in accuracy is {points(comparison['difference'])} points (95% interval {low} to {high}; "
        f"McNemar’s exact test: {p_value(comparison['p'])}): {compared(comparison, other)}."
    )


def _images(count: int) -> str:
    return f"{number(count)} {'image' if count == 1 else 'images'}"


def _change(before: Estimate, after: Estimate) -> str:
    """How a share changed, as printed: if both round to the same value, it did not change."""
    old, new = percent(before.value), percent(after.value)
    if old == new:
        return f"stayed at {new} (95% interval {percent_span(before)} before, {percent_span(after)} after)"
    verb = "rose" if after.value > before.value else "fell"
    return f"{verb} from {old} (95% interval {percent_span(before)}) to {new} (95% interval {percent_span(after)})"
