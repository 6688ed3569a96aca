"""What the evaluation of images counts: by class, by confusion, by confidence, and against another model."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefdag.image import evaluate
from prefdag.stats.intervals import paired_difference, proportion

# Six images of a cat, a dog and an owl (no fish is in the test split), and what each model takes them for.
CLASSES = ["cat", "dog", "fish", "owl"]
TABLE = pd.DataFrame(
    {
        "label": [0, 0, 0, 1, 1, 3],
        "reference": [0, 0, 1, 1, 1, 3],
        "policy": [0, 1, 1, 1, 2, 3],
        "control": [0, 0, 0, 1, 1, 3],
        "reference_confidence": [0.99, 0.95, 0.61, 0.97, 0.62, 0.45],
        "policy_confidence": [1.0] * 6,
        "control_confidence": [0.5] * 6,
    }
)


def test_accuracy_by_class_by_hand() -> None:
    found = evaluate.by_class(TABLE, CLASSES).set_index(["class", "model"])
    assert found.index.tolist() == [(name, model) for name in ("cat", "dog", "owl") for model in evaluate.MODELS]
    assert found["n"].groupby("class", sort=False).first().to_dict() == {"cat": 3, "dog": 2, "owl": 1}
    for row, right, n in ((("cat", "reference"), 2, 3), (("cat", "policy"), 1, 3), (("owl", "policy"), 1, 1)):
        cells = found.loc[row]
        assert (cells["right"], cells["accuracy"]) == (right, right / n)
        assert (cells["low"], cells["high"]) == proportion(right, n)


def test_confusion_by_hand() -> None:
    """A cat and a dog of the policy are wrong; a count of zero has no row."""
    found = evaluate.confusion(TABLE, CLASSES)
    policy = found[found["model"] == "policy"].set_index(["true", "predicted"])["count"].to_dict()
    assert policy == {
        ("cat", "cat"): 1,
        ("cat", "dog"): 2,
        ("dog", "dog"): 1,
        ("dog", "fish"): 1,
        ("owl", "owl"): 1,
    }
    assert found.groupby("model")["count"].sum().to_dict() == dict.fromkeys(evaluate.MODELS, 6)


def test_reliability_by_hand() -> None:
    """Confidences of the reference times 15: 14.85, 14.25, 9.15, 14.55, 9.3, 6.75: bins 15, 15, 10, 15, 10, 7.

    Bin 15: 3 of 3 right at (0.99 + 0.95 + 0.97) / 3 = 0.97. Bin 10: 1 of 2 at 0.615. Bin 7: 1 of 1 at 0.45.
    Error: (3 * 0.03 + 2 * 0.115 + 1 * 0.55) / 6 = 0.87 / 6
    """
    bins = evaluate.reliability(TABLE, "reference")
    assert bins[["bin", "n", "right"]].to_numpy().tolist() == [[7, 1, 1], [10, 2, 1], [15, 3, 3]]
    assert bins["confidence"].tolist() == pytest.approx([0.45, 0.615, 0.97])
    assert evaluate.calibration_error(bins) == pytest.approx(0.87 / 6)


def test_a_bin_holds_its_upper_end() -> None:
    """1 lies in the last bin, 0.5 / (1 / 15) = 7.5 in the eighth; both models are as wrong as their confidence says."""
    for model, number, error in (("policy", 15, 1 - 3 / 6), ("control", 8, 1 - 0.5)):
        bins = evaluate.reliability(TABLE, model)
        assert bins["bin"].tolist() == [number]
        assert evaluate.calibration_error(bins) == pytest.approx(error)


@pytest.mark.parametrize(("gap", "error"), [(0.0, 0.0), (0.2, 0.2)])
def test_calibration_error_is_the_gap_between_stated_and_true(gap: float, error: float) -> None:
    """40,000 predictions that are right as often as they say, less `gap`: in each bin the error of a share is below 0.01."""
    rng = np.random.default_rng(0)
    stated = rng.uniform(0.3, 1, 40_000)
    right = rng.random(40_000) < stated - gap
    table = pd.DataFrame({"label": 1, "policy": right.astype(int), "policy_confidence": stated})
    assert evaluate.calibration_error(evaluate.reliability(table, "policy")) == pytest.approx(error, abs=0.01)


def paired(both: int, alone: int, other: int, neither: int) -> pd.DataFrame:
    """Images that both models get right, one alone, the other alone, and none."""
    counts = (both, alone, other, neither)
    return pd.DataFrame(
        {"label": 1, "policy": np.repeat([1, 1, 0, 0], counts), "control": np.repeat([1, 0, 1, 0], counts)}
    )


def test_mcnemar_is_the_published_one() -> None:
    """59 and 80 rows alike, 6 and 16 apart: p = 0.052479, Fagerland, Lydersen and Laake 2017, ch. 8."""
    found = evaluate.compared(paired(59, 6, 16, 80), "policy", "control")
    assert (found["alone_right"], found["other_alone_right"]) == (6, 16)
    assert found["p"] == pytest.approx(0.052479, abs=5e-7)
    assert found["difference"] == pytest.approx((59 + 6) / 161 - (59 + 16) / 161)
    assert (found["difference_low"], found["difference_high"]) == paired_difference(6, 16, 161)


@given(alone=st.integers(0, 40), other=st.integers(0, 40))
def test_mcnemar_counts_the_coins(alone: int, other: int) -> None:
    """Twice the share of the 2^n throws that give the rarer side no oftener; images alike count for nothing."""
    n = alone + other
    p = min(1.0, 2 * sum(math.comb(n, k) for k in range(min(alone, other) + 1)) / 2**n)
    for both, neither in ((1, 0), (50, 70)):
        found = evaluate.compared(paired(both, alone, other, neither), "policy", "control")
        assert found["p"] == pytest.approx(p)
