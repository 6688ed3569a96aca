"""How the report writes numbers: percentages, signs, intervals and p-values."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

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
        """Whether the whole interval is above `level`, below it, or neither."""
        return "better" if self.low > level else "worse" if self.high < level else "unclear"


def percent(share: float) -> str:
    """0.613 -> 61.3%."""
    return f"{100 * share:.1f}%"


def percent_span(estimate: Estimate) -> str:
    """The interval of a share: 50.1–72.0%."""
    return f"{100 * estimate.low:.1f}{DASH}{100 * estimate.high:.1f}%"


def span(low: float, high: float) -> str:
    """The interval of a share in percent; empty for a count, which has no interval."""
    return f"{100 * low:.1f}{DASH}{100 * high:.1f}%" if low < high else ""


def points(share: float) -> str:
    """A difference of shares in percentage points: -0.021 -> −2.1."""
    return signed(100 * share, 1)


def signed(value: float, digits: int = 3) -> str:
    """With a sign, and a true minus: +0.571, −0.061. A value that rounds to zero is +0.000."""
    return f"{value:+z.{digits}f}".replace("-", MINUS)


def signed_span(estimate: Estimate, digits: int = 3) -> str:
    """An interval with signed ends: −0.012 to +0.310."""
    return f"{signed(estimate.low, digits)} to {signed(estimate.high, digits)}"


def number(value: float, digits: int = 3) -> str:
    """With thousands separators; a value that is not an int has `digits` decimals."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}".replace("-", MINUS)


def p_value(p: float) -> str:
    """p = 0.243 or p < 0.001, with spaces that do not break."""
    return (f"p = {p:.3f}" if p >= 0.001 else "p < 0.001").replace(" ", "\N{NO-BREAK SPACE}")


def minus(sentence: str) -> str:
    """The sentence with true minus signs in place of the hyphens of its negative numbers."""
    return re.sub(r"(?<![\w.-])-(?=\d)", MINUS, sentence)


def plural(noun: str, count: int) -> str:
    """1 finding; 0 or 2 findings."""
    return noun if count == 1 else f"{noun}s"


def spaced(name: str) -> str:
    """A name of params.yaml as words: kl_out_of_budget -> kl out of budget."""
    return name.replace("_", " ")
