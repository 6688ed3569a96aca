"""The losses as pure functions: hand-worked values, naive twins, gradients and limits; and held-out rewards."""

import itertools
from math import exp, log, sqrt
from typing import Any, get_args

import naive_losses as naive
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_losses import double, s
from torch import Tensor

from prefdag.config.loss import LossName
from prefdag.dpo.losses import EXTRAS, LOSSES, f_derivative, log_odds
from prefdag.stats.rewards import reward_metrics

LOSS_NAMES: list[LossName] = list(get_args(LossName))
OF_MARGIN: list[LossName] = ["sigmoid", "robust", "exo", "hinge", "ipo", "discopop"]
OF_REWARDS: list[LossName] = ["sppo", "nca", "apo_down"]
SMOOTHED: list[LossName] = ["sigmoid", "robust", "exo", "aot", "aot_unpaired", "cpo", "simpo"]


def value(loss: LossName, chosen: Tensor, rejected: Tensor, beta: float, **keywords: Any) -> Tensor:
    """The loss, with its per-row inputs filled in; for a loss of single responses, the sum over both responses."""
    ones = torch.ones_like(chosen)
    extras = {"kl": ones, "present": (ones, ones), "ref_margin": ones.cumsum(0), "chosen_mean_logps": -ones}
    wanted = {key: extras[key] for key in LOSSES[loss].keywords if key in extras}
    losses = LOSSES[loss].function(chosen, rejected, beta, **wanted | keywords)
    return sum(losses) if isinstance(losses, tuple) else losses  # type: ignore[return-value]


def test_every_loss_of_the_config_is_implemented() -> None:
    assert set(LOSSES) == set(LOSS_NAMES)


@pytest.mark.parametrize(
    ("loss", "beta", "keywords", "expected"),
    [
        ("sigmoid", 0.5, {}, log(1 + exp(-1))),
        ("sigmoid", 0.5, {"label_smoothing": 0.1}, -0.9 * log(s(1)) - 0.1 * log(s(-1))),
        ("robust", 0.5, {"label_smoothing": 0.1}, (-0.9 * log(s(1)) + 0.1 * log(s(-1))) / (1 - 2 * 0.1)),
        ("exo", 0.5, {"label_smoothing": 0.1}, s(1) * log(s(1) / 0.9) + s(-1) * log(s(-1) / 0.1)),
        ("exo", 0.5, {}, s(1) * log(s(1) / 0.999) + s(-1) * log(s(-1) / 0.001)),  # the default label smoothing is 0.001
        ("hinge", 0.5, {}, 1 - 0.5 * 2),
        ("hinge", 0.1, {}, 1 - 0.1 * 2),
        ("ipo", 0.5, {}, (2 - 1 / (2 * 0.5)) ** 2),
        ("ipo", 0.1, {}, (2 - 1 / (2 * 0.1)) ** 2),
        ("discopop", 0.5, {}, -s(-20) * log(s(1)) + s(20) * exp(-1)),  # the default tau is 0.05: z / tau = 20
        ("discopop", 0.5, {"discopop_tau": 1.0}, -s(-1) * log(s(1)) + s(1) * exp(-1)),
        ("sppo", 0.25, {}, (1 - 1 / 0.5) ** 2 + (-1 + 1 / 0.5) ** 2),
        ("nca", 0.5, {}, -log(s(0.5)) - log(s(-0.5)) / 2 - log(s(0.5)) / 2),
        ("apo_zero", 0.5, {}, (1 - s(0.5)) + s(-0.5)),
        ("apo_down", 0.5, {}, s(0.5) + (1 - s(0.5 + 0.5))),
    ],
)
def test_losses_of_log_ratios_by_hand(loss: LossName, beta: float, keywords: dict[str, float], expected: float) -> None:
    """Log-ratios 1 and -1: h = 2. With beta 0.5, z = 1 and the rewards are 0.5 and -0.5; s is the sigmoid."""
    assert value(loss, double(1), double(-1), beta, **keywords).item() == pytest.approx(expected, rel=1e-9)


def test_kto_by_hand() -> None:
    """beta 0.5. The rows estimate the KL as 3 and -1, so z0 = 0.5 * 1; the weights are 2 and 3."""
    chosen, rejected = LOSSES["kto"].function(
        double(1, 3), double(-1, 2), 0.5, kl=double(3, -1), desirable_weight=2.0, undesirable_weight=3.0
    )
    assert chosen.tolist() == pytest.approx([2 * (1 - s(0.5 * (1 - 1))), 2 * (1 - s(0.5 * (3 - 1)))], rel=1e-9)
    assert rejected.tolist() == pytest.approx([3 * (1 - s(0.5 * (1 + 1))), 3 * (1 - s(0.5 * (1 - 2)))], rel=1e-9)


def test_kto_takes_a_negative_kl_for_zero() -> None:
    """A mean of -1 can only be noise of the estimate: z0 = 0."""
    chosen, rejected = LOSSES["kto"].function(double(2, 2), double(2, 2), 0.5, kl=double(-3, 1))
    assert chosen.tolist() == pytest.approx([1 - s(0.5 * 2)] * 2, rel=1e-9)
    assert rejected.tolist() == pytest.approx([1 - s(0.5 * -2)] * 2, rel=1e-9)


def test_bco_by_hand() -> None:
    """beta 0.5: chosen rewards 1 and 2, rejected rewards 0 and -1; the shift is (1.5 - 0.5) / 2 = 0.5."""
    ones = double(1, 1)
    chosen, rejected = LOSSES["bco"].function(double(2, 4), double(0, -2), 0.5, present=(ones, ones))
    assert chosen.tolist() == pytest.approx([-log(s(1 - 0.5)), -log(s(2 - 0.5))], rel=1e-9)
    assert rejected.tolist() == pytest.approx([-log(s(0.5 - 0)), -log(s(0.5 + 1))], rel=1e-9)


def test_the_reward_shift_of_bco_leaves_out_absent_responses() -> None:
    """Chosen rewards 1 and 2; one rejected reward of -0.5, the other is absent: the shift is (1.5 - 0.5) / 2 = 0.5.

    If the absent response counted with a reward of 0, the shift would be (1.5 - 0.25) / 2.
    """
    chosen, rejected = LOSSES["bco"].function(double(2, 4), double(-1, 0), 0.5, present=(double(1, 1), double(1, 0)))
    assert chosen.tolist() == pytest.approx([-log(s(1 - 0.5)), -log(s(2 - 0.5))], rel=1e-9)
    assert rejected[0].item() == pytest.approx(-log(s(0.5 + 0.5)), rel=1e-9)


def test_aot_by_hand() -> None:
    """Policy margins 1 and 4, reference margins 3 and 0: once sorted, the differences are 1 - 0 and 4 - 3.

    Row by row they would be 1 - 3 and 4 - 0.
    """
    reference = double(3, 0)
    arguments = double(1, 4) - reference, double(0, 0), 1.0
    losses = LOSSES["aot"].function(*arguments, ref_margin=reference)
    assert losses.tolist() == pytest.approx([-log(s(1))] * 2, rel=1e-9)
    losses = LOSSES["aot"].function(*arguments, ref_margin=reference, label_smoothing=0.1)
    assert losses.tolist() == pytest.approx([-0.9 * log(s(1)) - 0.1 * log(s(-1))] * 2, rel=1e-9)


def test_aot_unpaired_by_hand() -> None:
    """Chosen log-ratios 3 and 1, rejected 0 and 2: once sorted, the differences are 1 - 0 and 3 - 2.

    Row by row they would be 3 - 0 and 1 - 2.
    """
    losses = LOSSES["aot_unpaired"].function(double(3, 1), double(0, 2), 1.0)
    assert losses.tolist() == pytest.approx([-log(s(1))] * 2, rel=1e-9)
    losses = LOSSES["aot_unpaired"].function(double(3, 1), double(0, 2), 1.0, label_smoothing=0.1)
    assert losses.tolist() == pytest.approx([-0.9 * log(s(1)) - 0.1 * log(s(-1))] * 2, rel=1e-9)


@pytest.mark.parametrize(
    ("loss", "chosen", "rejected", "beta", "keywords", "expected"),
    [
        ("cpo", -1, -3, 0.5, {}, -log(s(0.5 * (-1 + 3))) + 0.25),
        ("cpo", -1, -3, 0.5, {"sft_weight": 2.0}, -log(s(0.5 * (-1 + 3))) + 2 * 0.25),
        ("cpo", -1, -3, 0.5, {"label_smoothing": 0.1}, -0.9 * log(s(1)) - 0.1 * log(s(-1)) + 0.25),
        ("simpo", -0.5, -1.5, 2.0, {}, -log(s(2 * (-0.5 + 1.5) - 0.5))),
        ("simpo", -0.5, -1.5, 2.0, {"simpo_gamma": 1.0}, -log(s(2 * (-0.5 + 1.5) - 1))),
        ("simpo", -0.5, -1.5, 2.0, {"simpo_gamma": 1.0, "label_smoothing": 0.1}, -0.9 * log(s(1)) - 0.1 * log(s(-1))),
        ("orpo", 0.0, -1.0, 0.25, {}, -0.25 * log(s(0 + 1)) + 0.25),  # log-odds 0 and -1
        ("orpo", 0.0, -1.0, 0.25, {"sft_weight": 0.0}, -0.25 * log(s(0 + 1))),
        ("sft", -0.5, -1.5, 0.25, {}, 0.5),
    ],
)
def test_losses_without_a_reference_by_hand(
    loss: LossName, chosen: float, rejected: float, beta: float, keywords: dict[str, float], expected: float
) -> None:
    """The mean log-probability of the chosen tokens is -0.25."""
    wanted = {"chosen_mean_logps": double(-0.25)} if "chosen_mean_logps" in LOSSES[loss].keywords else {}
    losses = LOSSES[loss].function(double(chosen), double(rejected), beta, **wanted | keywords)
    assert losses.item() == pytest.approx(expected, rel=1e-9)


def test_log_odds_by_hand() -> None:
    """Odds are p / (1 - p). At p = 1 they are infinite; ours stop at a million."""
    odds = log_odds(double(0.5, 0.25, 0.8, 1.0).log()).exp()
    assert odds.tolist() == pytest.approx([0.5 / 0.5, 0.25 / 0.75, 0.8 / 0.2, 1e6], rel=1e-6)


@pytest.mark.parametrize(
    ("divergence", "alpha", "expected"),
    [
        ("forward_kl", None, [1 - 1 / 2, 0.0, 1 - 2]),
        ("js", None, [log(2 * 2 / (1 + 2)), 0.0, log(2 * 0.5 / (1 + 0.5))]),
        ("alpha", 0.5, [(1 - 1 / sqrt(2)) / 0.5, 0.0, (1 - sqrt(2)) / 0.5]),
    ],
)
def test_f_divergences_by_hand(divergence: str, alpha: float | None, expected: list[float]) -> None:
    """At u = 2, 1 and 1/2."""
    derivatives = f_derivative(double(2, 1, 0.5).log(), divergence, *[alpha] if alpha else [])
    assert derivatives.tolist() == pytest.approx(expected, abs=1e-9)


@given(ratio=st.floats(-5, 5))
@settings(deadline=None)
def test_alpha_divergences_lie_between_reverse_and_forward_kl(ratio: float) -> None:
    """(1 - u^-a) / a = log u - a (log u)^2 / 2 + ... falls from log u, its limit as a goes to 0, to 1 - 1/u at a = 1."""
    r = double(ratio)
    torch.testing.assert_close(f_derivative(r, "alpha", 1e-9), r, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(f_derivative(r, "alpha", 1 - 1e-9), f_derivative(r, "forward_kl"), atol=1e-5, rtol=1e-7)
    falling = [r, *(f_derivative(r, "alpha", a) for a in (0.1, 0.3, 0.5, 0.7, 0.9)), f_derivative(r, "forward_kl")]
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(falling))


@pytest.mark.parametrize("divergence", ["forward_kl", "js", "alpha"])
def test_f_divergences_are_the_log_ratio_near_the_reference(divergence: str) -> None:
    """f'(1) = 0 and f''(1) = 1; f''(1) = 1/2 for the Jensen-Shannon divergence, which is the sum of two halves."""
    slope = 0.5 if divergence == "js" else 1.0
    derivatives = f_derivative(double(-1e-6, 0, 1e-6), divergence, 0.3)
    torch.testing.assert_close(derivatives, slope * double(-1e-6, 0, 1e-6), atol=1e-11, rtol=0)


LOG_RATIOS = st.floats(-300, 300)


@pytest.mark.slow
@given(
    loss=st.sampled_from(OF_MARGIN),
    beta=st.floats(0.01, 2),
    e=st.floats(1e-3, 0.499),
    tau=st.floats(0.05, 0.5),
    rows=st.lists(st.tuples(LOG_RATIOS, LOG_RATIOS), min_size=1, max_size=5),
)
@settings(deadline=None)
def test_losses_of_the_margin_equal_their_naive_twins(
    loss: LossName, beta: float, e: float, tau: float, rows: list[tuple[float, float]]
) -> None:
    keywords = {key: {"label_smoothing": e, "discopop_tau": tau}[key] for key in LOSSES[loss].keywords}
    chosen, rejected = double(*sum(rows, ())).view(-1, 2).unbind(1)
    expected = [naive.of_margin(loss, c - r, beta, e, tau) for c, r in rows]
    assert value(loss, chosen, rejected, beta, **keywords).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.slow
@given(
    loss=st.sampled_from(OF_REWARDS),
    beta=st.floats(0.01, 2),
    rows=st.lists(st.tuples(LOG_RATIOS, LOG_RATIOS), min_size=1, max_size=5),
)
@settings(deadline=None)
def test_losses_of_both_rewards_equal_their_naive_twins(
    loss: LossName, beta: float, rows: list[tuple[float, float]]
) -> None:
    chosen, rejected = double(*sum(rows, ())).view(-1, 2).unbind(1)
    expected = [naive.of_rewards(loss, c, r, beta) for c, r in rows]
    assert value(loss, chosen, rejected, beta).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_discopop_stays_exact_at_a_very_negative_margin() -> None:
    """z = -100, tau 1: the modulation is m = exp(-100), and the loss -ln s(-100) + m exp(100)."""
    assert value("discopop", double(-100), double(0), 1.0, discopop_tau=1.0).item() == pytest.approx(100 + 1, abs=1e-6)


@pytest.mark.parametrize("loss", [name for name in LOSS_NAMES if name != "bco"])
def test_gradients_equal_finite_differences(loss: LossName) -> None:
    """Except for BCO, whose shift depends on the scores and passes no gradient: see test_preference.py."""
    scores = (torch.rand(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * -3).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: value(loss, t[0], t[1], 0.3), (scores,))


@pytest.mark.parametrize("loss", SMOOTHED)
def test_gradients_of_smoothed_losses_equal_finite_differences(loss: LossName) -> None:
    scores = (torch.rand(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * -3).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: value(loss, t[0], t[1], 0.3, label_smoothing=0.2), (scores,))


def test_gradient_of_dpo_is_weighted_by_how_wrong_the_reward_is() -> None:
    """DPO, section 4: the gradient with respect to log pi(y_w) is -beta sigmoid(-beta h), the opposite for y_l."""
    chosen, rejected = double(1, -6).requires_grad_(), double(-1, 1).requires_grad_()
    value("sigmoid", chosen, rejected, 0.5).sum().backward()
    expected = -0.5 * torch.sigmoid(-0.5 * double(2, -7))
    torch.testing.assert_close(chosen.grad, expected)
    torch.testing.assert_close(rejected.grad, -expected)


@pytest.mark.parametrize(("loss", "extra"), [("kto", "kl"), ("bco", None)])
def test_the_shifts_of_joint_losses_pass_no_gradient(loss: LossName, extra: str | None) -> None:
    """The loss of one row gives the other rows no gradient, which it would through a shift that passes one."""
    chosen, rejected = double(1, 3).requires_grad_(), double(-1, 2).requires_grad_()
    keywords = {extra: chosen - rejected} if extra else {}
    value(loss, chosen, rejected, 0.5, **keywords)[0].backward()
    for side in (chosen, rejected):
        assert side.grad is not None
        assert side.grad[0] != 0
        assert side.grad[1] == 0


@given(beta=st.floats(1e-3, 1e3), e=st.floats(0, 0.499))
@settings(deadline=None)
def test_sigmoid_starts_at_ln_2(beta: float, e: float) -> None:
    losses = value("sigmoid", torch.zeros(1), torch.zeros(1), beta, label_smoothing=e)
    assert losses.item() == pytest.approx(log(2), rel=1e-6)


@pytest.mark.slow
@given(e=st.floats(0, 0.45), beta=st.floats(0.01, 2), c=st.floats(-10, 10), r=st.floats(-10, 10))
@settings(deadline=None)
def test_robust_dpo_is_unbiased(e: float, beta: float, c: float, r: float) -> None:
    """arXiv:2403.00409: if a share e of the labels is flipped, its expected value is the loss on the clean labels."""
    right, wrong = (
        value("robust", *pair, beta, label_smoothing=e) for pair in ((double(c), double(r)), (double(r), double(c)))
    )
    torch.testing.assert_close((1 - e) * right + e * wrong, value("sigmoid", double(c), double(r), beta))


def test_exo_is_zero_where_the_policy_matches_the_smoothed_label() -> None:
    """A Kullback-Leibler divergence is zero where its two distributions are equal: s(z) = 1 - e."""
    h = double(-1, 0, log(0.8 / 0.2), 3)
    losses = value("exo", h, torch.zeros_like(h), 1.0, label_smoothing=0.2)
    assert losses[2].item() == pytest.approx(0, abs=1e-12)
    assert (losses[[0, 1, 3]] > 1e-3).all()


@pytest.mark.parametrize("beta", [0.1, 10.0])
@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_large_differences_stay_finite(loss: LossName, beta: float) -> None:
    """A million nats in float32, from long responses or a policy that ran away; a NaN would end the run."""
    chosen = torch.tensor([-1e6, 1e6, 1e6, -1e6], requires_grad=True)
    rejected = torch.tensor([1e6, -1e6, 1e6, -1e6], requires_grad=True)
    losses = value(loss, chosen, rejected, beta)
    losses.sum().backward()
    assert bool(losses.isfinite().all())
    for side in (chosen, rejected):
        assert side.grad is None or bool(side.grad.isfinite().all())


@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_keywords_of_losses_are_options_or_come_from_the_rows(loss: LossName) -> None:
    """Any other keyword would be a parameter that nobody can set."""
    names = set(LOSSES[loss].keywords)
    assert names <= {*EXTRAS, *vars(naive.options())}


def test_held_out_rewards_by_hand() -> None:
    """Margins 1, 2, 3 and -2: three of four are positive; the mean is 1, the squared deviations are 0, 1, 4 and 9."""
    metrics = reward_metrics(torch.tensor([1.0, 1, 2, -1]), torch.tensor([0.0, -1, -1, 1]))
    assert metrics["accuracy"] == 3 / 4
    assert metrics["chosen"] == (1 + 1 + 2 - 1) / 4
    assert metrics["rejected"] == (0 - 1 - 1 + 1) / 4
    assert metrics["margin"] == (1 + 2 + 3 - 2) / 4
    half = 3.182446 * sqrt((0 + 1 + 4 + 9) / 3) / sqrt(4)  # Student's t at 97.5% with 3 degrees of freedom
    assert (metrics["margin_low"], metrics["margin_high"]) == pytest.approx((1 - half, 1 + half), abs=1e-5)
    assert metrics["accuracy_low"] < 0.75 < metrics["accuracy_high"]


def test_held_out_ties_count_as_wrong() -> None:
    metrics = reward_metrics(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.0]))
    assert metrics["accuracy"] == 0.5
