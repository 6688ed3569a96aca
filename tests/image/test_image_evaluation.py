"""The evaluation of images: per class, confusion, calibration, and against another model."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefdag.image import evaluate
from prefdag.stats.intervals import paired_difference, proportion

# Six images of cats, dogs and an owl (the test split has no fish), and the class that each model predicts.
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
    table = evaluate.by_class(TABLE, CLASSES).set_index(["class", "model"])
    assert table.index.tolist() == [(name, model) for name in ("cat", "dog", "owl") for model in evaluate.MODELS]
    assert table["n"].groupby("class", sort=False).first().to_dict() == {"cat": 3, "dog": 2, "owl": 1}
    for row, right, n in ((("cat", "reference"), 2, 3), (("cat", "policy"), 1, 3), (("owl", "policy"), 1, 1)):
        cells = table.loc[row]
        assert (cells["right"], cells["accuracy"]) == (right, right / n)
        assert (cells["low"], cells["high"]) == proportion(right, n)


def test_confusion_by_hand() -> None:
    """The policy is wrong on two cats and a dog. A count of zero has no row."""
    table = evaluate.confusion(TABLE, CLASSES)
    policy = table[table["model"] == "policy"].set_index(["true", "predicted"])["count"].to_dict()
    assert policy == {
        ("cat", "cat"): 1,
        ("cat", "dog"): 2,
        ("dog", "dog"): 1,
        ("dog", "fish"): 1,
        ("owl", "owl"): 1,
    }
    assert table.groupby("model")["count"].sum().to_dict() == dict.fromkeys(evaluate.MODELS, 6)


def test_reliability_by_hand() -> None:
    """The reference's confidences times 15 are 14.85, 14.25, 9.15, 14.55, 9.3 and 6.75: bins 15, 15, 10, 15, 10 and 7."""
    bins = evaluate.reliability(TABLE, "reference")
    assert bins[["bin", "n", "right"]].to_numpy().tolist() == [[7, 1, 1], [10, 2, 1], [15, 3, 3]]
    confidence = [0.45 / 1, (0.61 + 0.62) / 2, (0.99 + 0.95 + 0.97) / 3]
    assert bins["confidence"].tolist() == pytest.approx(confidence)
    error = 1 / 6 * abs(1 / 1 - 0.45) + 2 / 6 * abs(1 / 2 - 0.615) + 3 / 6 * abs(3 / 3 - 0.97)
    assert evaluate.calibration_error(bins) == pytest.approx(error)


def test_a_bin_includes_its_upper_end() -> None:
    """1 is in the last bin, and 0.5 * 15 = 7.5 in the eighth. The policy is right on 3 of 6 images, the control on all."""
    for model, number, error in (("policy", 15, 1 - 3 / 6), ("control", 8, 6 / 6 - 0.5)):
        bins = evaluate.reliability(TABLE, model)
        assert bins["bin"].tolist() == [number]
        assert evaluate.calibration_error(bins) == pytest.approx(error)


@pytest.mark.parametrize(("gap", "error"), [(0.0, 0.0), (0.2, 0.2)])
def test_calibration_error_is_the_gap_between_stated_and_true(gap: float, error: float) -> None:
    """40,000 predictions, right with their stated probability less `gap`: in each bin the share is off by less than 0.01."""
    rng = np.random.default_rng(0)
    stated = rng.uniform(0.3, 1, 40_000)
    right = rng.random(40_000) < stated - gap
    table = pd.DataFrame({"label": 1, "policy": right.astype(int), "policy_confidence": stated})
    assert evaluate.calibration_error(evaluate.reliability(table, "policy")) == pytest.approx(error, abs=0.01)


def paired(both: int, alone: int, other: int, neither: int) -> pd.DataFrame:
    """Numbers of images that both models get right, only the policy, only the control, and neither."""
    counts = (both, alone, other, neither)
    return pd.DataFrame(
        {"label": 1, "policy": np.repeat([1, 1, 0, 0], counts), "control": np.repeat([1, 0, 1, 0], counts)}
    )


def test_mcnemar_equals_a_published_value() -> None:
    """59 and 80 concordant images, 6 and 16 discordant ones: Fagerland, Lydersen and Laake 2017, chapter 8."""
    result = evaluate.compared(paired(59, 6, 16, 80), "policy", "control")
    assert (result["alone_right"], result["other_alone_right"]) == (6, 16)
    assert result["p"] == pytest.approx(0.052479, abs=5e-7)
    assert result["difference"] == pytest.approx((59 + 6) / 161 - (59 + 16) / 161)
    assert (result["difference_low"], result["difference_high"]) == paired_difference(6, 16, 161)


@pytest.mark.slow
@given(alone=st.integers(0, 40), other=st.integers(0, 40))
def test_mcnemar_is_the_exact_sign_test(alone: int, other: int) -> None:
    """Twice the probability of at most min(alone, other) heads in n coin throws; concordant images do not count."""
    n = alone + other
    p = min(1.0, 2 * sum(math.comb(n, k) for k in range(min(alone, other) + 1)) / 2**n)
    for both, neither in ((1, 0), (50, 70)):
        result = evaluate.compared(paired(both, alone, other, neither), "policy", "control")
        assert result["p"] == pytest.approx(p)
