"""Held-out implicit rewards, of either track, as figures with intervals."""

from torch import Tensor

from prefdag.intervals import mean, proportion


def reward_metrics(chosen: Tensor, rejected: Tensor) -> dict[str, float]:
    """Means of implicit rewards, (pairs,), and how many pairs they rank right, with 95% intervals."""
    margin = (chosen - rejected).double()
    right = int((margin > 0).sum())
    accuracy_low, accuracy_high = proportion(right, len(margin))
    margin_low, margin_high = mean(margin.tolist())
    return {
        "chosen": float(chosen.double().mean()),
        "rejected": float(rejected.double().mean()),
        "margin": float(margin.mean()),
        "margin_low": margin_low,
        "margin_high": margin_high,
        "accuracy": right / len(margin),
        "accuracy_low": accuracy_low,
        "accuracy_high": accuracy_high,
    }
