"""What the image classifiers do on images that none of them was trained or selected on."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from torch import Tensor

from prefdag.dpo.rewards import reward_metrics
from prefdag.image.data import ImagePairs
from prefdag.intervals import proportion

MODELS = ("reference", "policy", "control")


def predictions(split: ImagePairs, logps: Mapping[str, Tensor]) -> pd.DataFrame:
    """A row an image: its labels and, for each of `MODELS`, the predicted class and the probability of the true one.

    Args:
        logps: the class log-probabilities of each model, float32 (n, classes).
    """
    columns: dict[str, Any] = {"index": split.index, "label": split.y_w.tolist(), "y_l": split.y_l.tolist()}
    columns |= {name: logps[name].argmax(1).tolist() for name in MODELS}
    true = split.y_w[:, None]
    columns |= {f"{name}_probability": logps[name].gather(1, true)[:, 0].exp().tolist() for name in MODELS}
    return pd.DataFrame(columns)


def metrics(split: ImagePairs, logps: Mapping[str, Tensor], beta: float) -> dict[str, Any]:
    """Accuracies with 95% intervals, cross-entropies, the policy's implicit rewards, and its KL to the reference.

    The KL is KL(policy || reference) of the predicted class distributions, in nats, averaged over images.
    """
    n, truth = len(split), split.y_w[:, None]
    result: dict[str, Any] = {"n_test": n}
    for name in MODELS:
        correct = int((logps[name].argmax(1) == split.y_w).sum())
        low, high = proportion(correct, n)
        result[name] = {
            "accuracy": correct / n,
            "accuracy_low": low,
            "accuracy_high": high,
            "cross_entropy": -float(logps[name].gather(1, truth).double().mean()),
        }
    policy, reference = logps["policy"].double(), logps["reference"].double()
    rewards = beta * (policy - reference)
    chosen, rejected = rewards.gather(1, truth)[:, 0], rewards.gather(1, split.y_l[:, None])[:, 0]
    result["rewards"] = reward_metrics(chosen, rejected)
    result["kl"] = float((policy.exp() * (policy - reference)).sum(1).mean())
    return result
