"""Intervals against closed forms and published values."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import optimize, stats

from prefdag.stats import intervals
from prefdag.stats.intervals import gap, mean, paired_difference, proportion, ratio_difference, share, weighted


@pytest.mark.slow
@given(n=st.integers(1, 10_000), share=st.floats(0, 1))
@example(n=10, share=0.5)
@example(n=10, share=0.0)  # the interval of none of 10 ends at z^2 / (10 + z^2), not at 0
@example(n=10, share=1.0)
def test_proportion_is_wilsons_formula(n: int, share: float) -> None:
    """(p + z^2/2n ± z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) with z = 1.959964 (Wilson 1927)."""
    successes = round(share * n)
    p, z = successes / n, 1.959963984540054
    center = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = proportion(successes, n)
    assert low == pytest.approx((center - half) / (1 + z * z / n), abs=1e-9)
    assert high == pytest.approx((center + half) / (1 + z * z / n), abs=1e-9)
    assert 0 <= low <= p <= high <= 1


def test_mean_by_hand() -> None:
    """1, 2, 3: the mean is 2, the standard deviation 1; Student's t at 97.5% with 2 degrees of freedom is 4.302653."""
    assert mean([1, 2, 3]) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), abs=1e-6)


@pytest.mark.parametrize("values", [[1.5], [1.5, 1.5, 1.5]])
def test_mean_without_spread_is_a_point(values: list[float]) -> None:
    assert mean(values) == (1.5, 1.5)


def test_paired_difference_equals_a_published_interval() -> None:
    """59 and 80 concordant rows, 6 and 16 discordant ones.

    Fagerland, Lydersen and Laake 2017, Statistical Analysis of Contingency Tables, chapter 8.
    """
    assert paired_difference(6, 16, 59 + 80 + 6 + 16) == pytest.approx((-0.1240, -0.0054), abs=5e-5)


@pytest.mark.parametrize("n", [1, 10, 1000])
def test_paired_difference_of_models_that_never_differ_has_a_width(n: int) -> None:
    """Without discordant rows the ends solve n delta^2 = z^2 delta (1 - delta), as Wilson's interval of 0 of n does."""
    end = 1.959963984540054**2 / (n + 1.959963984540054**2)
    assert end == pytest.approx(proportion(0, n)[1])
    assert paired_difference(0, 0, n) == pytest.approx((-end, end), abs=1e-9)


@pytest.mark.parametrize(("first_only", "second_only", "n"), [(6, 16, 161), (1, 7, 21), (40, 20, 160), (3, 0, 30)])
def test_paired_difference_ends_where_the_likelihoods_score_test_rejects(
    first_only: int, second_only: int, n: int
) -> None:
    """The nuisance probability is the numerical maximum of the multinomial likelihood, not the root of the quadratic."""
    for delta in paired_difference(first_only, second_only, n):
        low, high = max(0.0, -delta) + 1e-12, (1 - delta) / 2 - 1e-12

        def against(q: float, delta: float = delta) -> float:
            return -(
                first_only * math.log(q + delta)
                + second_only * math.log(q)
                + (n - first_only - second_only) * math.log(1 - 2 * q - delta)
            )

        q = float(optimize.minimize_scalar(against, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x)
        score = (first_only - second_only - n * delta) / math.sqrt(n * (2 * q + delta - delta**2))
        assert abs(score) == pytest.approx(1.959964, abs=1e-4)


@pytest.mark.slow
@given(data=st.data(), n=st.integers(1, 500))
def test_paired_difference_covers_its_estimate_and_mirrors_its_arguments(data: st.DataObject, n: int) -> None:
    first_only = data.draw(st.integers(0, n))
    second_only = data.draw(st.integers(0, n - first_only))
    low, high = paired_difference(first_only, second_only, n)
    assert -1 <= low <= (first_only - second_only) / n <= high <= 1
    assert low < high
    swapped = paired_difference(second_only, first_only, n)
    assert swapped == pytest.approx((-high, -low), abs=1e-9)


def test_paired_difference_has_its_nominal_coverage() -> None:
    """Summed over all tables of 30 rows; only the first is right with probability 0.15, only the second with 0.05."""
    n, first, second = 30, 0.15, 0.05
    covered = sum(
        float(stats.multinomial.pmf([b, c, n - b - c], n, [first, second, 1 - first - second]))
        for b in range(n + 1)
        for c in range(n + 1 - b)
        for low, high in [paired_difference(b, c, n)]
        if low <= first - second <= high
    )
    assert 0.93 < covered < 0.98


def test_share_is_wilsons_for_zeros_and_ones_and_students_otherwise() -> None:
    assert share([0.6, 0.6]) == (0.6, 0.6)
    assert share([1.0, 0.0]) == proportion(1, 2)
    assert share([0.1, 1.0]) == (0.0, 1.0)  # cut off at 0 and 1


def test_weighted_adds_distances_in_squares() -> None:
    """0.5 (0.4 to 0.8) and 0.3 (0.0 to 0.4), half of each."""
    down = math.sqrt((0.5 * (0.5 - 0.4)) ** 2 + (0.5 * (0.3 - 0.0)) ** 2)
    up = math.sqrt((0.5 * (0.8 - 0.5)) ** 2 + (0.5 * (0.4 - 0.3)) ** 2)
    center = 0.5 * 0.5 + 0.5 * 0.3
    assert weighted([(0.5, 0.4, 0.8), (0.3, 0.0, 0.4)], [0.5, 0.5]) == pytest.approx((center - down, center + up))
    assert weighted([(0.5, 0.4, 0.8)], [1.0]) == pytest.approx((0.4, 0.8))


def test_gap_adds_the_distances_that_face_each_other() -> None:
    """0.5 (0.2 to 0.6) minus 0.3 (0.0 to 0.7): down sqrt(0.3^2 + 0.4^2) = 0.5, up sqrt(0.1^2 + 0.3^2)."""
    assert gap((0.5, 0.2, 0.6), (0.3, 0.0, 0.7)) == pytest.approx((0.2 - 0.5, 0.2 + math.sqrt(0.1)))


def test_ratio_difference_is_paired() -> None:
    """Differences between rows cancel out. With independent noise, half the width is about 1.96 standard errors."""
    rng = np.random.default_rng(0)
    rows, tokens = rng.normal(100, 50, 400), np.full(400, 2.0)
    noise = rng.normal(1, 0.5, 400)
    low, high = ratio_difference(rows + noise, rows, tokens)
    assert (high - low) / 2 == pytest.approx(1.96 * noise.std() / math.sqrt(400) / 2, rel=0.1)
    assert low < noise.mean() / 2 < high
    assert ratio_difference(rows + noise, rows, tokens) == (low, high)
    assert ratio_difference(rows + 1, rows, tokens) == pytest.approx((1 / 2, 1 / 2))
    assert ratio_difference(rows, rows, tokens) == (0.0, 0.0)
    assert ratio_difference(rows[:1] + 3, rows[:1], tokens[:1]) == pytest.approx((3 / 2, 3 / 2))


def coverage(n: int, skewed: bool, monkeypatch: pytest.MonkeyPatch) -> float:
    """The share of 600 samples of n rows whose interval contains the truth, which is 0."""
    monkeypatch.setattr(intervals, "SAMPLES", 799)
    rng = np.random.default_rng(n)
    right = 0
    for _ in range(600):
        rows = rng.exponential(1, n) - 1 if skewed else rng.normal(0, 1, n)
        low, high = ratio_difference(rows, np.zeros(n), np.ones(n))
        right += low <= 0 <= high
    return right / 600


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 10, 20, 29])
def test_few_skewed_rows_are_covered(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """95% is the aim; two standard errors of 600 samples are 1.8%."""
    assert coverage(n, skewed=True, monkeypatch=monkeypatch) > 0.92


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 20])
def test_few_rows_without_skew_are_covered(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0.93 < coverage(n, skewed=False, monkeypatch=monkeypatch) < 0.99


@pytest.mark.slow
def test_percentiles_of_few_skewed_rows_cover_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control for the above, and why there is a method for few rows."""
    monkeypatch.setattr(intervals, "SMALL", 0)
    assert coverage(20, skewed=True, monkeypatch=monkeypatch) < 0.92


@pytest.mark.parametrize("n", [2, 3, 7])
def test_the_interval_of_few_rows_is_finite_and_contains_the_ratio(n: int) -> None:
    rng = np.random.default_rng(n)
    rows, weights = rng.lognormal(0, 2, n), np.ceil(rng.lognormal(3, 1, n))
    low, high = ratio_difference(rows, np.zeros(n), weights)
    assert -math.inf < low < rows.sum() / weights.sum() < high < math.inf
    assert ratio_difference(rows, np.zeros(n), weights) == (low, high)
    assert ratio_difference(rows + weights / 2, rows, weights) == pytest.approx((0.5, 0.5))
