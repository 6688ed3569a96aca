"""What the image classifiers do on images that none of them was trained or selected on."""

from collections.abc import Mapping
from typing import Any, cast

import pandas as pd
from torch import Tensor

from prefdag.dpo.preference import Preference, Scores
from prefdag.dpo.rewards import reward_metrics
from prefdag.image.classify import correct, of_class, score_pairs
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
    columns |= {f"{name}_probability": of_class(logps[name], split.y_w).exp().tolist() for name in MODELS}
    return pd.DataFrame(columns)


def metrics(split: ImagePairs, logps: Mapping[str, Tensor], preference: Preference) -> dict[str, Any]:
    """Accuracies with 95% intervals, cross-entropies, the policy's implicit rewards, and its KL to the reference.

    Rewards are those of the true class and of the label pairs' other one, whatever negatives the policy saw: runs can be
    compared. The KL is KL(policy || reference) of the predicted class distributions, in nats, averaged over images.
    """
    n = len(split)
    result: dict[str, Any] = {"n_test": n}
    for name in MODELS:
        right = int(correct(logps[name], split.y_w).sum())
        low, high = proportion(right, n)
        result[name] = {
            "accuracy": right / n,
            "accuracy_low": low,
            "accuracy_high": high,
            "cross_entropy": -float(of_class(logps[name], split.y_w).double().mean()),
        }
    policy, reference = logps["policy"].double(), logps["reference"].double()
    scores = score_pairs(policy, reference, split.y_w, split.y_l)
    result["rewards"] = reward_metrics(*preference.rewards(cast(Scores, scores)))
    result["kl"] = float(scores["kl"].mean())
    return result
