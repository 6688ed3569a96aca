"""95% confidence intervals of the reported metrics."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

LEVEL = 0.95
SAMPLES = 9_999  # of a bootstrap
SMALL = 30  # rows; with fewer, percentiles of a bootstrap cover too little


def proportion(successes: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927). It stays within 0..1, also at 0 or n successes."""
    interval = stats.binomtest(successes, n).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def mean(values: Sequence[float]) -> tuple[float, float]:
    """Student's t interval of a mean. For a single value, or equal values, both ends are the mean itself."""
    center, error = float(np.mean(values)), float(stats.sem(values)) if len(values) > 1 else 0.0
    if error == 0:
        return center, center
    low, high = stats.t.interval(LEVEL, len(values) - 1, loc=center, scale=error)
    return float(low), float(high)


def share(values: Sequence[float]) -> tuple[float, float]:
    """The interval of a mean of shares, each from 0 to 1: Wilson's if all are 0 or 1, else Student's, clipped to 0..1."""
    if all(value in (0.0, 1.0) for value in values):
        return proportion(round(sum(values)), len(values))
    low, high = mean(values)
    return max(0.0, low), min(1.0, high)


def weighted(estimates: Sequence[tuple[float, float, float]], weights: Sequence[float]) -> tuple[float, float]:
    """The interval of a weighted mean of independent estimates, each (value, low, high): MOVER.

    Zou and Donner 2008 (Statistics in Medicine 27:1693), eq. 2 for a sum of several terms.
    """
    center = sum(w * value for (value, _, _), w in zip(estimates, weights, strict=True))
    down = math.sqrt(sum((w * (value - low)) ** 2 for (value, low, _), w in zip(estimates, weights, strict=True)))
    up = math.sqrt(sum((w * (high - value)) ** 2 for (value, _, high), w in zip(estimates, weights, strict=True)))
    return center - down, center + up


def ratio_difference(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]
) -> tuple[float, float]:
    """Paired bootstrap interval of sum(first) / sum(weights) - sum(second) / sum(weights), rows drawn together.

    Of `bootstrap`. With fewer than `SMALL` rows it is too narrow if rows are skewed, see `_small`. A single row, or
    differences that are all zero, count as exactly known.

    Args:
        first, second, weights: (rows,).
    """
    differences = first - second
    if len(differences) == 1 or not differences.any():
        value = float(differences.sum() / weights.sum())
        return value, value
    if len(differences) < SMALL:
        return _small(differences, weights)

    def statistic(difference: Any, weight: Any, axis: int) -> Any:
        return difference.sum(axis=axis) / weight.sum(axis=axis)

    return bootstrap((differences, weights), statistic)


def bootstrap(columns: Sequence[npt.NDArray[np.float64]], statistic: Callable[..., Any]) -> tuple[float, float]:
    """Percentile bootstrap interval: 9,999 samples with a fixed seed (Efron and Tibshirani 1993, chapter 13).

    Args:
        columns: (rows,) each; a row is drawn with all of its values.
        statistic: of the columns of a sample, with the keyword `axis`, along which their rows lie.
    """
    interval = stats.bootstrap(
        columns,
        statistic,
        paired=True,
        confidence_level=LEVEL,
        method="percentile",
        n_resamples=SAMPLES,
        batch=100,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _small(differences: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The interval of sum(differences) / sum(weights) for few rows: each end is the outer one of two intervals.

    One is the studentised bootstrap (Efron and Tibshirani 1993, chapter 12.5), which follows the skew of the rows. The other is
    Student's t with the ratio's linearised standard error (Cochran 1977, eq. 6.13), for samples too small to show a skew. With
    20 exponential rows they contain the truth in 96% of 2,000 samples, the percentiles in 90%; with 30 rows, in 92%.
    """
    n = len(differences)

    def ratio_and_error(d: npt.NDArray[np.float64], w: npt.NDArray[np.float64]) -> tuple[Any, Any]:
        ratio = d.sum(axis=-1) / w.sum(axis=-1)
        residuals = d - ratio[..., None] * w
        return ratio, np.sqrt((residuals**2).sum(axis=-1) / (n * (n - 1))) / w.mean(axis=-1)

    center, error = ratio_and_error(differences, weights)
    if error <= 1e-12 * abs(center):  # equal rows
        return float(center), float(center)
    rows = np.random.default_rng(0).integers(0, n, (SAMPLES, n))
    ratios, errors = ratio_and_error(differences[rows], weights[rows])
    varied = errors > 1e-12 * error  # a sample can be one row many times
    t = (ratios[varied] - center) / errors[varied]
    t_low, t_high = np.quantile(t, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(t) else (0.0, 0.0)
    limit = float(stats.t.ppf((1 + LEVEL) / 2, n - 1))
    return float(center - max(t_high, limit) * error), float(center - min(t_low, -limit) * error)


def roc_area(area: float, n: int, m: int) -> tuple[float, float]:
    """95% interval of the area under a ROC curve of n and m responses. It stays within 0..1, also at an area of 0 or 1.

    It contains the areas whose own standard error (Hanley and McNeil 1982) is compatible with `area`, as Wilson's interval
    does for a proportion: Newcombe 2006 (Statistics in Medicine 25:559), method 5, with n and m both replaced by (n + m) / 2
    in the variance.
    """
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    others = (n + m) / 2 - 1

    def beyond(theta: float) -> float:
        spread = 1 + others * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (area - theta) ** 2 - z**2 * theta * (1 - theta) * spread / (n * m)

    inside = min(max(area, 1e-9), 1 - 1e-9)  # there `beyond` is negative
    return float(optimize.brentq(beyond, 0.0, inside)), float(optimize.brentq(beyond, inside, 1.0))


def paired_difference(first_only: int, second_only: int, n: int) -> tuple[float, float]:
    """Tango's score interval of the difference of two proportions of the same n rows, first minus second.

    It contains the differences that the score test does not reject: Tango 1998 (Statistics in Medicine 17:891). At zero, that
    test is McNemar's without correction. If the two never differ, the interval still has a width.

    Args:
        first_only, second_only: the number of rows where only the first holds, and where only the second does.
    """
    z, center = float(stats.norm.ppf((1 + LEVEL) / 2)), (first_only - second_only) / n

    def beyond(delta: float) -> float:
        # The most likely probability that only the second holds, given the difference delta.
        linear = (2 * n - first_only + second_only) * delta - first_only - second_only
        root = math.sqrt(max(0.0, linear**2 + 8 * n * second_only * delta * (1 - delta)))  # below zero only by rounding
        second = (root - linear) / (4 * n)
        return (n * (center - delta)) ** 2 - z**2 * n * (2 * second + delta * (1 - delta))

    below, above = max(-1.0, center - 1e-9), min(1.0, center + 1e-9)  # there `beyond` is negative, or zero at an end
    return float(optimize.brentq(beyond, -1.0, below)), float(optimize.brentq(beyond, above, 1.0))


def difference(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Welch's t interval (Welch 1947) of mean(first) - mean(second).

    A single value, or equal values, count as exactly known, as in `mean`.
    """
    center = float(np.mean(first) - np.mean(second))
    n = np.array([len(first), len(second)])
    squares = np.array([np.var(values, ddof=1) / len(values) if len(values) > 1 else 0.0 for values in (first, second)])
    if not squares.any():
        return center, center
    freedom = squares.sum() ** 2 / (squares**2 / np.maximum(n - 1, 1)).sum()
    low, high = stats.t.interval(LEVEL, freedom, loc=center, scale=math.sqrt(squares.sum()))
    return float(low), float(high)


def gap(first: tuple[float, float, float], second: tuple[float, float, float]) -> tuple[float, float]:
    """The interval of first - second of two independent estimates, each (value, low, high): MOVER.

    Zou and Donner 2008 (Statistics in Medicine 27:1693), eq. 4. Too wide if the two go up and down together.
    """
    (one, one_low, one_high), (other, other_low, other_high) = first, second
    down, up = math.hypot(one - one_low, other_high - other), math.hypot(one_high - one, other - other_low)
    return one - other - down, one - other + up
