"""How well a reward model ranks held-out pairs, how far its margins can be trusted, and how much it goes by length."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefdag.stats.intervals import bootstrap, share
from prefdag.stats.rewards import BINS, reward_metrics


def figures(
    chosen: Tensor, rejected: Tensor, preference: Tensor, tokens: tuple[Tensor, Tensor] | None = None
) -> dict[str, Any]:
    """`n`, the `reward_metrics`, the `bins` of their calibration error and, if lengths are given, the `length_bias`.

    Args:
        chosen, rejected: rewards, float64 (pairs,), not empty.
        preference: the probability that chosen is preferred, float64 (pairs,).
        tokens: of the chosen and of the rejected responses, (pairs,) each.
    """
    longer = None if tokens is None else tokens[0] - tokens[1]
    return {
        "n": len(chosen),
        **reward_metrics(chosen, rejected, preference, longer),
        "bins": calibration_bins(chosen - rejected, preference),
        **({} if tokens is None else {"length": length_bias(chosen, rejected, preference, tokens)}),
    }


def calibration_bins(margin: Tensor, preference: Tensor) -> list[dict[str, float]]:
    """The bins of `rewards.calibration_error` that have pairs: mean prediction, and the share of labels that agree.

    A margin m predicts sigmoid(|m|) for the response that its sign prefers.
    """
    predicted = margin.abs().sigmoid()
    agrees = torch.where(margin >= 0, preference, 1 - preference)
    bins = ((predicted - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    found = []
    for number in range(BINS):
        inside = bins == number
        if inside.any():
            low, high = share(agrees[inside].tolist())
            means = {"predicted": float(predicted[inside].mean()), "observed": float(agrees[inside].mean())}
            found.append({"n": int(inside.sum()), **means, "observed_low": low, "observed_high": high})
    return found


def length_bias(chosen: Tensor, rejected: Tensor, preference: Tensor, tokens: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """How much the rewards go by length. Arguments are those of `figures`.

    `chosen_longer`, `chosen_shorter`, `same_length`: the accuracy on pairs whose preferred response is the longer one, the
    shorter one, or neither. `longer_wins`: the accuracy of a rule that takes the longer response, and guesses if neither is,
    as a control. `correlation`: of rewards with lengths, over all responses.
    """
    longer = torch.where(preference >= 0.5, tokens[0] - tokens[1], tokens[1] - tokens[0])
    margin = (chosen - rejected) * (preference - 0.5).sign()
    kinds = {"chosen_longer": longer > 0, "chosen_shorter": longer < 0, "same_length": longer == 0}
    right = {name: (margin[rows] > 0).double() for name, rows in kinds.items() if rows.any()}
    right["longer_wins"] = (longer.sign().double() + 1) / 2
    lengths = (tokens[0].double(), tokens[1].double())
    return {name: _accuracy(each) for name, each in right.items()} | length_correlation((chosen, rejected), lengths)


def _accuracy(right: Tensor) -> dict[str, float]:
    low, high = share(right.tolist())
    return {"n": len(right), "accuracy": float(right.mean()), "accuracy_low": low, "accuracy_high": high}


def length_correlation(rewards: tuple[Tensor, Tensor], lengths: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Pearson's correlation of rewards with lengths, with a percentile bootstrap interval; empty if either never varies.

    Both responses of a pair are drawn together (Efron and Tibshirani 1993, chapter 13).

    Args:
        rewards, lengths: of the chosen and of the rejected responses, (pairs,) each.
    """
    columns = [np.asarray(values, dtype=np.float64) for values in (*rewards, *lengths)]

    def correlation(*rows: Any, axis: int = -1) -> Any:
        x, y = (np.concatenate(both, axis=axis) for both in (rows[:2], rows[2:]))
        x, y = (each - each.mean(axis=axis, keepdims=True) for each in (x, y))
        norms = np.sqrt((x**2).sum(axis=axis) * (y**2).sum(axis=axis))
        # A sample that never varies has no correlation; it counts as none.
        return np.divide((x * y).sum(axis=axis), norms, out=np.zeros_like(norms), where=norms > 0)

    if len(columns[0]) < 2 or any(np.ptp(np.concatenate(both)) == 0 for both in (columns[:2], columns[2:])):
        return {}
    low, high = bootstrap(columns, correlation)
    return {"correlation": float(correlation(*columns)), "correlation_low": low, "correlation_high": high}
