"""What an interval or a test allows the report to conclude.

If a 95% interval includes the value under test, the report says that there is no significant difference. Two models on the
same rows count as different only if both the interval and McNemar's exact test say so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefdag.report.page.numbers import Estimate, Tone, plural, spaced

if TYPE_CHECKING:
    from prefdag.health.verdict import Verdict


@dataclass(frozen=True)
class Conclusion:
    """The result of one track: the tone of its main comparison, a headline, and the sentences that support it."""

    tone: Tone
    headline: str
    sentences: tuple[str, ...]


def paired_tone(comparison: Mapping[str, float]) -> Tone:
    """Which of two models on the same rows is better: "unclear" unless both the interval and the exact test agree."""
    tone = Estimate.of(comparison, "difference").against(0.0)
    return tone if comparison["p"] < 0.05 else "unclear"


def against_zero(estimate: Estimate) -> str:
    """Where an interval is relative to zero, in words."""
    return {"better": "above zero", "unclear": "which includes zero", "worse": "below zero"}[estimate.against(0.0)]


def health_line(verdict: "Verdict") -> str:
    """How many findings in how many checks, and which checks could not be made."""
    findings, checked = len(verdict.findings), len(verdict.checked)
    line = f"{findings or 'no'} {plural('finding', findings)} in {checked} {plural('check', checked)}"
    missing = ", ".join(map(spaced, verdict.not_checked))
    return f"{line} (not checked: {missing})." if missing else f"{line}."
