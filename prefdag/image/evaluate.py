"""Evaluation of the image classifiers on test images that none of them was trained or selected on."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import Tensor

from prefdag.image.classify import kl, of_class, pair_batch
from prefdag.stats import paired
from prefdag.stats.intervals import proportion
from prefdag.stats.rewards import reward_metrics

if TYPE_CHECKING:
    from prefdag.dpo.preference import Preference
    from prefdag.image.data import ImagePairs

MODELS = ("reference", "policy", "control")
BINS = 15  # of confidence from 0 to 1, as in arXiv:1706.04599


def predictions(split: "ImagePairs", logps: Mapping[str, Tensor]) -> pd.DataFrame:
    """One row per image: its labels and, for each of `MODELS`, the predicted class and two probabilities.

    `MODEL_probability` is that of the true class, `MODEL_confidence` that of the predicted class.

    Args:
        logps: the class log-probabilities of each model, float32 (n, classes).
    """
    columns: dict[str, Any] = {"index": split.index, "label": split.y_w.tolist(), "y_l": split.y_l.tolist()}
    columns |= {name: logps[name].argmax(1).tolist() for name in MODELS}
    columns |= {f"{name}_probability": of_class(logps[name], split.y_w).exp().tolist() for name in MODELS}
    columns |= {f"{name}_confidence": logps[name].amax(1).exp().tolist() for name in MODELS}
    return pd.DataFrame(columns)


def metrics(split: "ImagePairs", logps: Mapping[str, Tensor], preference: "Preference") -> dict[str, Any]:
    """Accuracies with 95% intervals, cross-entropies, calibration errors, the policy compared with reference and control, its
    implicit rewards, and its KL to the reference.

    Rewards are those of the true class and of the label pair's other class, whichever negatives the policy was trained with,
    so that runs are comparable. The KL is KL(policy || reference) of the predicted class distributions, in nats, mean over
    images.
    """
    table = predictions(split, logps)
    result: dict[str, Any] = {"n_test": len(split)}
    for name in MODELS:
        result[name] = {
            **share_right(table[name] == table["label"]),
            "cross_entropy": -float(of_class(logps[name], split.y_w).double().mean()),
            "calibration_error": calibration_error(reliability(table, name)),
        }
    for other in ("reference", "control"):
        result[f"policy_against_{other}"] = compared(table, "policy", other)
    policy, reference = logps["policy"].double(), logps["reference"].double()
    result["rewards"] = reward_metrics(*preference.rewards(pair_batch(policy, reference, split.y_w, split.y_l)))
    result["kl"] = float(kl(policy, reference).mean())
    return result


def share_right(right: pd.Series) -> dict[str, float]:
    """Accuracy and Wilson's 95% interval, from bool (n,), not empty."""
    low, high = proportion(int(right.sum()), len(right))
    return {"accuracy": float(right.mean()), "accuracy_low": low, "accuracy_high": high}


def compared(table: pd.DataFrame, model: str, other: str) -> dict[str, float]:
    """The difference of two models' accuracies on the same images, from `paired.shares`.

    Args:
        table: from `predictions`.
    """
    right, other_right = (np.asarray(table[name] == table["label"]) for name in (model, other))
    return paired.shares(right, other_right)


def by_class(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """One row per class with images and model: the number of images, and the model's accuracy on them.

    Args:
        table: from `predictions`.
        classes: the names of the classes, in the order of their numbers.
    """
    names: dict[Any, str] = dict(enumerate(classes))
    rows = [
        {"class": names[label], "model": name, **counted(part[name] == part["label"])}
        for label, part in table.groupby("label")
        for name in MODELS
    ]
    return pd.DataFrame(rows)


def counted(right: pd.Series) -> dict[str, float]:
    """`share_right` as table cells, with its counts."""
    share = share_right(right)
    ends = {"low": share["accuracy_low"], "high": share["accuracy_high"]}
    return {"n": len(right), "right": int(right.sum()), "accuracy": share["accuracy"], **ends}


def confusion(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Counts of images by true class, predicted class and model: one row per count above zero."""
    names: dict[Any, str] = dict(enumerate(classes))
    rows = [
        {"true": names[true], "predicted": names[predicted], "model": name, "count": len(part)}
        for name in MODELS
        for (true, predicted), part in table.groupby(["label", name])
    ]
    return pd.DataFrame(rows)


def calibration(table: pd.DataFrame) -> pd.DataFrame:
    """`reliability` of all models."""
    return pd.concat([reliability(table, name) for name in MODELS], ignore_index=True)


def reliability(table: pd.DataFrame, model: str) -> pd.DataFrame:
    """One row per non-empty bin m, (m - 1) / BINS < confidence <= m / BINS: arXiv:1706.04599, section 2.

    `confidence` is the mean confidence in the bin, `accuracy` the share of its images that the model gets right.
    """
    confidence, right = table[f"{model}_confidence"], table[model] == table["label"]
    number = np.ceil(confidence * BINS).clip(1, BINS).astype(int)
    rows = [
        {"model": model, "bin": m, "confidence": float(part.mean()), **counted(right[part.index])}
        for m, part in confidence.groupby(number)
    ]
    return pd.DataFrame(rows)


def calibration_error(bins: pd.DataFrame) -> float:
    """Expected calibration error, arXiv:1706.04599, eq. 3: sum over bins of n_m / n |accuracy_m - confidence_m|."""
    return float((bins["n"] * (bins["accuracy"] - bins["confidence"]).abs()).sum() / bins["n"].sum())
