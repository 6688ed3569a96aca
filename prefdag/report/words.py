"""Numbers into words: how the report writes them, and what it dares to say about them.

The rule of the verdicts: a 95% interval that covers the value under test, or two intervals that overlap, is called what
it is. Report and model card print these sentences as they stand.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

Tone = Literal["better", "unclear", "worse"]
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, metrics: Mapping[str, Any], key: str) -> "Estimate":
        """From the entries `key`, `key_low` and `key_high`."""
        return cls(metrics[key], metrics[f"{key}_low"], metrics[f"{key}_high"])

    def against(self, level: float) -> Tone:
        """On which side of `level` the whole interval lies."""
        return "better" if self.low > level else "worse" if self.high < level else "unclear"

    def compared(self, other: "Estimate") -> Tone:
        """On which side of `other`'s interval this one lies, without overlap."""
        return "better" if self.low > other.high else "worse" if self.high < other.low else "unclear"


@dataclass(frozen=True)
class Verdict:
    """What one track shows: the tone of its main comparison, a headline, and the sentences that carry it."""

    tone: Tone
    headline: str
    sentences: tuple[str, ...]


def percent(share: float) -> str:
    """0.613 -> 61.3%."""
    return f"{100 * share:.1f}%"


def percent_span(estimate: Estimate) -> str:
    """The interval of a share: 50.1–72.0%."""
    return f"{100 * estimate.low:.1f}{DASH}{100 * estimate.high:.1f}%"


def signed(value: float, digits: int = 3) -> str:
    """With a sign, and a true minus: +0.571, −0.061."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def signed_span(estimate: Estimate) -> str:
    """An interval of signed ends: −0.012 to +0.310."""
    return f"{signed(estimate.low)} to {signed(estimate.high)}"


def number(value: float, digits: int = 3) -> str:
    """Thousands set apart; `digits` decimals for what is no integer."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}".replace("-", MINUS)


def text_verdict(metrics: Mapping[str, Any]) -> Verdict:
    """The text track, from reports/text/metrics.json."""
    heldout = metrics["heldout"]
    rewards = heldout["rewards"]
    accuracy, margin = Estimate.of(rewards, "accuracy"), Estimate.of(rewards, "margin")
    tone = accuracy.against(0.5)
    headline = {
        "better": "The policy ranks unseen preferences better than chance.",
        "unclear": "Not shown: that the policy ranks unseen preferences better than chance.",
        "worse": "The policy ranks unseen preferences worse than chance.",
    }[tone]
    beside = {
        "better": "all of it above the 50% of a coin toss",
        "unclear": "an interval that covers the 50% of a coin toss",
        "worse": "all of it below the 50% of a coin toss",
    }[tone]
    sign = {"better": "above zero", "unclear": "which covers zero", "worse": "below zero"}[margin.against(0.0)]
    reference, policy = heldout["reference"], heldout["policy"]
    return Verdict(
        tone,
        headline,
        (
            f"On {number(heldout['n_pairs'])} held-out pairs it ranks {percent(accuracy.value)} right "
            f"(95% interval {percent_span(accuracy)}, {beside}).",
            f"The mean reward margin is {signed(margin.value)} (95% interval {signed_span(margin)}, {sign}).",
            _displacement(rewards["chosen"], rewards["rejected"]),
            f"The policy lies {number(heldout['kl'], 4)} nats a token from the reference (KL). On the held-out chosen "
            f"responses its perplexity is {number(policy['perplexity'], 2)}, the reference’s "
            f"{number(reference['perplexity'], 2)}, the base model’s {number(heldout['base']['perplexity'], 2)} "
            f"({number(heldout['n_tokens'])} tokens; no interval is computed for these).",
        ),
    )


def image_verdict(metrics: Mapping[str, Any], predictions: pd.DataFrame) -> Verdict:
    """The image track, from reports/image/metrics.json and predictions.csv."""
    reference, policy, control = (
        Estimate.of(metrics[model], "accuracy") for model in ("reference", "policy", "control")
    )
    tone = policy.compared(reference)
    headline = {
        "better": "DPO made the classifier more accurate.",
        "unclear": "No clear change in the classifier’s accuracy.",
        "worse": "DPO made the classifier less accurate.",
    }[tone]
    apart = {
        "better": "The intervals do not overlap.",
        "unclear": "The intervals overlap, so the difference may be chance.",
        "worse": "The intervals do not overlap.",
    }[tone]
    beside_control = {
        "better": "the policy is more accurate than it, with intervals that do not overlap",
        "unclear": "the policy’s interval overlaps it, so neither is shown to be better",
        "worse": "the policy is less accurate than it, with intervals that do not overlap",
    }[policy.compared(control)]
    was_right, is_right = (predictions[model] == predictions["label"] for model in ("reference", "policy"))
    return Verdict(
        tone,
        headline,
        (
            f"Accuracy on {number(metrics['n_test'])} test images {_change(reference, policy)}. {apart}",
            f"A control trained by cross-entropy on the same budget reaches {percent(control.value)} "
            f"({percent_span(control)}): {beside_control}.",
            f"DPO set right {int((~was_right & is_right).sum())} of the reference’s {int((~was_right).sum())} mistakes, "
            f"and broke {int((was_right & ~is_right).sum())} of its {number(int(was_right.sum()))} right answers.",
            f"The policy lies {number(metrics['kl'], 4)} nats an image from the reference (KL).",
        ),
    )


def _displacement(chosen: float, rejected: float) -> str:
    """What became of the likelihood of either response. That both fall is common in DPO: arXiv:2402.13228."""
    ends = f"(mean reward {signed(chosen)})", f"(mean reward {signed(rejected)})"
    if chosen < 0 and rejected < 0:
        further = "the rejected ones further" if rejected < chosen else "the chosen ones further"
        return (
            f"Both kinds of response became less likely than under the reference, {further}: "
            f"chosen {ends[0]}, rejected {ends[1]}."
        )
    likelier = [
        "more" if reward > 0 else "less" if reward < 0 else "neither more nor less" for reward in (chosen, rejected)
    ]
    return (
        f"Chosen responses became {likelier[0]} likely than under the reference {ends[0]}, "
        f"rejected ones {likelier[1]} likely {ends[1]}."
    )


def _change(before: Estimate, after: Estimate) -> str:
    """The change of a share as it is printed: a difference that rounds away is none."""
    old, new = percent(before.value), percent(after.value)
    if old == new:
        return f"stayed at {new} (95% intervals: {percent_span(before)} before, {percent_span(after)} after)"
    verb = "rose" if after.value > before.value else "fell"
    return f"{verb} from {old} (95% interval {percent_span(before)}) to {new} ({percent_span(after)})"
