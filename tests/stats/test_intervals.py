"""Intervals against closed forms worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from prefdag.stats.intervals import mean, paired_difference, proportion, ratio_difference, share, weighted


@given(n=st.integers(1, 10_000), share=st.floats(0, 1))
def test_proportion_is_wilsons_formula(n: int, share: float) -> None:
    """(p + z^2/2n ± z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) with z = 1.959964, Wilson 1927."""
    successes = round(share * n)
    p, z = successes / n, 1.959963984540054
    center = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = proportion(successes, n)
    assert low == pytest.approx((center - half) / (1 + z * z / n), abs=1e-9)
    assert high == pytest.approx((center + half) / (1 + z * z / n), abs=1e-9)
    assert 0 <= low <= p <= high <= 1


def test_proportion_by_hand() -> None:
    """5 of 10: z^2 = 3.8415; center (0.5 + 0.19207) / 1.38415 = 0.5; half 1.96 sqrt(0.025 + 0.0096) / 1.38415 = 0.2634."""
    assert proportion(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_proportion_of_none_and_of_all_is_not_certain() -> None:
    """0 of 10: 3.8415 / 13.8415 = 0.2775 at the upper end, not 0."""
    assert proportion(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert proportion(10, 10) == pytest.approx((0.7225, 1), abs=1e-4)


def test_mean_by_hand() -> None:
    """1, 2, 3: mean 2, s = 1, standard error 1 / sqrt(3) = 0.57735, t(0.975, 2) = 4.302653: 2 ± 2.484138."""
    assert mean([1, 2, 3]) == pytest.approx((-0.484138, 4.484138), abs=1e-6)


@pytest.mark.parametrize("values", [[1.5], [1.5, 1.5, 1.5]])
def test_mean_without_spread_is_a_point(values: list[float]) -> None:
    assert mean(values) == (1.5, 1.5)


def test_paired_difference_is_the_published_one() -> None:
    """59 and 80 rows alike, 6 and 16 apart: Fagerland, Lydersen, Laake 2017, Statistical Analysis of Contingency Tables, 8."""
    assert paired_difference(6, 16, 59 + 80 + 6 + 16) == pytest.approx((-0.1240, -0.0054), abs=5e-5)


@pytest.mark.parametrize("n", [1, 10, 1000])
def test_paired_difference_of_models_that_never_differ_is_not_certain(n: int) -> None:
    """Without a discordant row the ends solve n delta^2 = z^2 delta (1 - delta): z^2 / (n + z^2), Wilson's for 0 of n."""
    end = proportion(0, n)[1]
    assert paired_difference(0, 0, n) == pytest.approx((-end, end), abs=1e-9)


@pytest.mark.parametrize(("first_only", "second_only", "n"), [(6, 16, 161), (1, 7, 21), (40, 20, 160), (3, 0, 30)])
def test_paired_difference_ends_where_the_likelihoods_score_test_rejects(
    first_only: int, second_only: int, n: int
) -> None:
    """The nuisance probability found by maximising the multinomial likelihood itself, not by the quadratic's formula."""
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


@given(data=st.data(), n=st.integers(1, 500))
def test_paired_difference_covers_its_estimate_and_turns_with_its_arguments(data: st.DataObject, n: int) -> None:
    first_only = data.draw(st.integers(0, n))
    second_only = data.draw(st.integers(0, n - first_only))
    low, high = paired_difference(first_only, second_only, n)
    assert -1 <= low <= (first_only - second_only) / n <= high <= 1
    assert low < high
    turned = paired_difference(second_only, first_only, n)
    assert turned == pytest.approx((-high, -low), abs=1e-9)


def test_paired_difference_covers_the_truth_as_often_as_it_says() -> None:
    """Over every table of 30 rows where the first alone holds with probability 0.15 and the second alone with 0.05."""
    n, first, second = 30, 0.15, 0.05
    covered = sum(
        float(stats.multinomial.pmf([b, c, n - b - c], n, [first, second, 1 - first - second]))
        for b in range(n + 1)
        for c in range(n + 1 - b)
        for low, high in [paired_difference(b, c, n)]
        if low <= first - second <= high
    )
    assert 0.93 < covered < 0.98


def test_share_is_wilsons_of_ones_and_zeros_and_students_of_others() -> None:
    assert share([0.6, 0.6]) == (0.6, 0.6)
    assert share([1.0, 0.0]) == proportion(1, 2)
    assert share([0.1, 1.0]) == (0.0, 1.0)  # inside


def test_weighted_adds_distances_in_squares() -> None:
    """0.5 (0.4 to 0.8) and 0.3 (0.0 to 0.4), half each: down sqrt(0.05^2 + 0.15^2), up sqrt(0.15^2 + 0.05^2)."""
    reach = math.sqrt(0.05**2 + 0.15**2)
    assert weighted([(0.5, 0.4, 0.8), (0.3, 0.0, 0.4)], [0.5, 0.5]) == pytest.approx((0.4 - reach, 0.4 + reach))
    assert weighted([(0.5, 0.4, 0.8)], [1.0]) == pytest.approx((0.4, 0.8))


def test_ratio_difference_is_paired() -> None:
    """What all rows share cancels out, however much rows differ; of independent rows it is about 1.96 standard errors wide."""
    rng = np.random.default_rng(0)
    rows, tokens = rng.normal(100, 50, 400), np.full(400, 2.0)
    noise = rng.normal(1, 0.5, 400)
    low, high = ratio_difference(rows + noise, rows, tokens)
    assert (high - low) / 2 == pytest.approx(1.96 * noise.std() / 20 / 2, rel=0.1)
    assert low < noise.mean() / 2 < high
    assert ratio_difference(rows + noise, rows, tokens) == (low, high)
    assert ratio_difference(rows + 1, rows, tokens) == pytest.approx((0.5, 0.5))
    assert ratio_difference(rows, rows, tokens) == (0.0, 0.0)
    assert ratio_difference(rows[:1] + 3, rows[:1], tokens[:1]) == pytest.approx((1.5, 1.5))
