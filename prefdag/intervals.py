"""95% intervals of what evaluations report."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

LEVEL = 0.95


def proportion(successes: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), inside 0..1 also at 0 or n successes."""
    interval = stats.binomtest(successes, n).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def mean(values: Sequence[float]) -> tuple[float, float]:
    """Student's t interval of a mean; both ends are the mean itself for a single value or equal ones."""
    center, error = float(np.mean(values)), float(stats.sem(values)) if len(values) > 1 else 0.0
    if error == 0:
        return center, center
    low, high = stats.t.interval(LEVEL, len(values) - 1, loc=center, scale=error)
    return float(low), float(high)
