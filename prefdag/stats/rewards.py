"""Metrics of held-out implicit rewards, with intervals, for both tracks."""

import math

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from prefdag.stats.intervals import difference, mean, roc_area, share, weighted

BINS = 10  # for the calibration error


def reward_metrics(
    chosen: Tensor, rejected: Tensor, preference: Tensor | None = None, longer: Tensor | None = None
) -> dict[str, float]:
    """Means of implicit rewards, the share of pairs ranked right, with 95% intervals, and calibration.

    A margin m predicts that chosen is preferred with probability sigmoid(m) (Bradley-Terry). `log_loss` is the cross-entropy
    of this prediction in nats (ln 2 if the margin is always zero), `brier` its mean squared error. `calibration_error` is the
    mean distance between predicted and true share within bins of similar predictions (arXiv:1706.04599, eq. 3).

    Args:
        chosen, rejected: rewards, (pairs,).
        preference: the true probability that chosen is preferred, (pairs,); None: 1.
        longer: length of chosen minus length of rejected, (pairs,), in any unit; None: neither `by_length` nor a
            length-controlled accuracy.
    """
    margin = (chosen - rejected).double()
    p = torch.ones_like(margin) if preference is None else preference.to(margin)
    # The share of a pair's labels that agree with the sign of its margin; with a tie, none do.
    right = torch.where(margin > 0, p, 1 - p) * (margin != 0)
    accuracy_low, accuracy_high = share(right.tolist())
    margin_low, margin_high = mean(margin.tolist())
    return {
        "chosen": float(chosen.double().mean()),
        "rejected": float(rejected.double().mean()),
        "margin": float(margin.mean()),
        "margin_low": margin_low,
        "margin_high": margin_high,
        "accuracy": float(right.mean()),
        "accuracy_low": accuracy_low,
        "accuracy_high": accuracy_high,
        "log_loss": float((-p * F.logsigmoid(margin) - (1 - p) * F.logsigmoid(-margin)).mean()),
        "brier": float(((margin.sigmoid() - p) ** 2).mean()),
        "calibration_error": calibration_error(margin, p),
    } | (
        {}
        if longer is None
        else by_length(p, longer) | length_controlled(right, torch.where(p >= 0.5, longer, -longer))
    )


def by_length(preference: Tensor, longer: Tensor) -> dict[str, float]:
    """The accuracy of a ranker that always prefers the longer response: a control. Equal lengths count half.

    Args:
        preference: the true probability that chosen is preferred, (pairs,).
        longer: length of chosen minus length of rejected, (pairs,).
    """
    right = torch.where(longer > 0, preference, 1 - preference)
    right[longer == 0] = 0.5
    low, high = share(right.tolist())
    return {"by_length": float(right.mean()), "by_length_low": low, "by_length_high": high}


def length_controlled(right: Tensor, longer: Tensor) -> dict[str, float]:
    """The accuracy if the preferred response were the shorter one as often as the longer one.

    Both kinds of pairs have equal weight, regardless of their frequency; pairs of equal length keep their share. A policy that
    goes by length alone gets half of the pairs of unequal length right. Empty if one of the two kinds is absent.

    Args:
        right: whether a pair is ranked right, or the share of its labels that agree, (pairs,).
        longer: length of the preferred response minus length of the other, (pairs,).
    """
    kinds = [right[longer > 0], right[longer < 0]]
    if not all(map(len, kinds)):
        return {}
    weights = [sum(map(len, kinds)) / 2 / len(right)] * 2
    if len(equal := right[longer == 0]):
        kinds.append(equal)
        weights.append(len(equal) / len(right))
    estimates = [(float(kind.mean()), *share(kind.tolist())) for kind in kinds]
    low, high = weighted(estimates, weights)
    return {
        "length_controlled": sum(w * value for (value, _, _), w in zip(estimates, weights, strict=True)),
        "length_controlled_low": max(0.0, low),
        "length_controlled_high": min(1.0, high),
    }


def unpaired_reward_metrics(chosen: Tensor, rejected: Tensor) -> dict[str, float]:
    """The reward metrics that are defined for unpaired responses.

    `margin` is the difference of the two means. `accuracy` is the probability that a random chosen response has a higher
    reward than a random rejected one, ties counted half: U / (n m), Mann and Whitney 1947, the area under the ROC curve.

    Args:
        chosen, rejected: rewards, (n,) and (m,), neither empty.
    """
    n, m = len(chosen), len(rejected)
    ranks = stats.rankdata(torch.cat([chosen, rejected]).double().numpy())  # ties share a rank
    accuracy = float(ranks[:n].sum() - n * (n + 1) / 2) / (n * m)
    accuracy_low, accuracy_high = roc_area(accuracy, n, m)
    margin_low, margin_high = difference(chosen.tolist(), rejected.tolist())
    means = float(chosen.double().mean()), float(rejected.double().mean())
    return {
        "chosen": means[0],
        "rejected": means[1],
        "margin": means[0] - means[1],
        "margin_low": margin_low,
        "margin_high": margin_high,
        "accuracy": accuracy,
        "accuracy_low": accuracy_low,
        "accuracy_high": accuracy_high,
    }


def calibration_error(margin: Tensor, preference: Tensor) -> float:
    """Expected calibration error of sigmoid(|margin|) for the response that the margin's sign prefers, in `BINS` bins.

    Not of sigmoid(margin) itself: if every label is 1, chosen first, it could only err in one direction.
    """
    predicted = margin.abs().sigmoid()
    true = torch.where(margin >= 0, preference, 1 - preference)
    bins = ((predicted - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    sums = torch.zeros(BINS, dtype=torch.float64).index_add(0, bins, predicted - true)
    return float(sums.abs().sum()) / len(margin) if len(margin) else math.nan
