"""What the image classifiers do on images that none of them was trained or selected on."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
from torch import Tensor

from prefdag.dpo.preference import Preference, Scores
from prefdag.image.classify import of_class, score_pairs
from prefdag.stats import paired
from prefdag.stats.intervals import proportion
from prefdag.stats.rewards import reward_metrics

if TYPE_CHECKING:
    from prefdag.image.data import ImagePairs

MODELS = ("reference", "policy", "control")
BINS = 15  # of the confidence, from 0 to 1, as in arXiv:1706.04599


def predictions(split: "ImagePairs", logps: Mapping[str, Tensor]) -> pd.DataFrame:
    """A row an image: its labels and, for each of `MODELS`, the predicted class, and two probabilities.

    `MODEL_probability` is that of the true class, `MODEL_confidence` that of the predicted one.

    Args:
        logps: the class log-probabilities of each model, float32 (n, classes).
    """
    columns: dict[str, Any] = {"index": split.index, "label": split.y_w.tolist(), "y_l": split.y_l.tolist()}
    columns |= {name: logps[name].argmax(1).tolist() for name in MODELS}
    columns |= {f"{name}_probability": of_class(logps[name], split.y_w).exp().tolist() for name in MODELS}
    columns |= {f"{name}_confidence": logps[name].amax(1).exp().tolist() for name in MODELS}
    return pd.DataFrame(columns)


def metrics(split: "ImagePairs", logps: Mapping[str, Tensor], preference: Preference) -> dict[str, Any]:
    """Accuracies with 95% intervals, cross-entropies, calibration errors, what DPO changed against reference and control,
    the policy's implicit rewards, and its KL to the reference.

    Rewards are those of the true class and of the label pairs' other one, whatever negatives the policy saw: runs can be
    compared. The KL is KL(policy || reference) of the predicted class distributions, in nats, averaged over images.
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
    scores = score_pairs(policy, reference, split.y_w, split.y_l)
    result["rewards"] = reward_metrics(*preference.rewards(cast(Scores, scores)))
    result["kl"] = float(scores["kl"].mean())
    return result


def share_right(right: pd.Series) -> dict[str, float]:
    """Accuracy and Wilson's 95% interval, from what is right and what is not: bool (n,), not empty."""
    low, high = proportion(int(right.sum()), len(right))
    return {"accuracy": float(right.mean()), "accuracy_low": low, "accuracy_high": high}


def compared(table: pd.DataFrame, model: str, other: str) -> dict[str, float]:
    """Two models on the same images: the difference of their accuracies, as `paired.shares` has it.

    Args:
        table: of `predictions`.
    """
    right, other_right = (np.asarray(table[name] == table["label"]) for name in (model, other))
    return paired.shares(right, other_right)


def by_class(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """A row a class that has images, and model: how many images of the class there are, and the share it gets right.

    Args:
        table: of `predictions`.
        classes: the classes' names, in the order of their numbers.
    """
    names: dict[Any, str] = dict(enumerate(classes))
    rows = [
        {"class": names[label], "model": name, **counted(part[name] == part["label"])}
        for label, part in table.groupby("label")
        for name in MODELS
    ]
    return pd.DataFrame(rows)


def counted(right: pd.Series) -> dict[str, float]:
    """`share_right` as cells of a table, with the counts that it was taken from."""
    share = share_right(right)
    ends = {"low": share["accuracy_low"], "high": share["accuracy_high"]}
    return {"n": len(right), "right": int(right.sum()), "accuracy": share["accuracy"], **ends}


def confusion(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """How many images of a true class each model takes for a predicted one: a row a count that is not zero."""
    names: dict[Any, str] = dict(enumerate(classes))
    rows = [
        {"true": names[true], "predicted": names[predicted], "model": name, "count": len(part)}
        for name in MODELS
        for (true, predicted), part in table.groupby(["label", name])
    ]
    return pd.DataFrame(rows)


def calibration(table: pd.DataFrame) -> pd.DataFrame:
    """`reliability` of every model."""
    return pd.concat([reliability(table, name) for name in MODELS], ignore_index=True)


def reliability(table: pd.DataFrame, model: str) -> pd.DataFrame:
    """A row a bin m of equal width that holds images, with (m - 1) / BINS < confidence <= m / BINS: arXiv:1706.04599, sec. 2.

    `confidence` is the mean of the bin's, `accuracy` the share of its images that the model gets right.
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
