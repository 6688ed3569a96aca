"""Differences of two models on the same rows. Pairing cancels the difficulty of the rows out of the interval."""

import numpy as np
import numpy.typing as npt
from scipy import stats

from prefdag.stats.intervals import paired_difference, ratio_difference

Values = npt.NDArray[np.float64]


def shares(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> dict[str, float]:
    """The difference of two shares of the same rows, first minus second, with Tango's interval, and McNemar's exact test.

    The test (McNemar 1947) takes the rows that only one model gets right; its null hypothesis is that each is equally likely to
    be the first model's or the second's. `p` is two-sided, and 1 without any such row.

    Args:
        first, second: which rows each gets right, (rows,), not empty.
    """
    alone, other_alone = int((first & ~second).sum()), int((~first & second).sum())
    low, high = paired_difference(alone, other_alone, len(first))
    return {
        "alone_right": alone,
        "other_alone_right": other_alone,
        "difference": (alone - other_alone) / len(first),
        "difference_low": low,
        "difference_high": high,
        "p": float(stats.binomtest(alone, alone + other_alone).pvalue) if alone + other_alone else 1.0,
    }


def means(first: Values, second: Values, weights: Values) -> dict[str, float]:
    """The difference of sum(first) / sum(weights) and sum(second) / sum(weights), with its paired bootstrap interval.

    Args:
        first, second, weights: (rows,), not empty.
    """
    low, high = ratio_difference(first, second, weights)
    difference = float((first - second).sum() / weights.sum())
    return {"difference": difference, "difference_low": low, "difference_high": high}
