"""Preference losses: numbers worked by hand, a naive twin, gradients, and the check of the first step."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prefdag.config import LossName
from prefdag.dpo.losses import LOSSES, SMOOTHED, START_TOLERANCE, Preference
from prefdag.dpo.rewards import reward_metrics
from prefdag.errors import NumericError, ParamsError

LOSS_NAMES: list[LossName] = list(get_args(LossName))


def smoothing(loss: LossName, e: float) -> float:
    """A label smoothing that the loss takes: e, none where it uses none, never zero for EXO."""
    return max(e, 1e-3) if loss == "exo" else e if loss in SMOOTHED else 0.0


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def naive(loss: str, beta: float, e: float, chosen: float, rejected: float) -> float:
    """The formulas as the papers write them, of the two log-ratios."""

    def log_sigmoid(z: float) -> float:
        return -math.log1p(math.exp(-z)) if z > 0 else z - math.log1p(math.exp(z))

    def sigmoid(z: float) -> float:
        return math.exp(log_sigmoid(z))

    h = chosen - rejected
    z, r_w, r_l = beta * h, beta * chosen, beta * rejected
    match loss:
        case "sigmoid":
            return -(1 - e) * log_sigmoid(z) - e * log_sigmoid(-z)
        case "robust":
            return (-(1 - e) * log_sigmoid(z) + e * log_sigmoid(-z)) / (1 - 2 * e)
        case "exo":
            return sigmoid(z) * (log_sigmoid(z) - math.log(1 - e)) + sigmoid(-z) * (log_sigmoid(-z) - math.log(e))
        case "hinge":
            return max(0.0, 1 - z)
        case "ipo":
            return (h - 1 / (2 * beta)) ** 2
        case "sppo":
            return (chosen - 1 / (2 * beta)) ** 2 + (rejected + 1 / (2 * beta)) ** 2
        case "discopop":
            m = sigmoid(z / 0.05)
            return -(1 - m) * log_sigmoid(z) + (m * math.exp(-z) if m > 1e-300 else 0.0)
        case "nca":
            return -log_sigmoid(r_w) - log_sigmoid(-r_w) / 2 - log_sigmoid(-r_l) / 2
        case "apo_zero":
            return 1 - sigmoid(r_w) + sigmoid(r_l)
        case "apo_down":
            return sigmoid(r_w) + 1 - sigmoid(r_w - r_l)
    raise ValueError(loss)


@pytest.mark.parametrize(
    ("loss", "beta", "label_smoothing", "expected"),
    [
        ("sigmoid", 0.5, 0.0, 0.313262),
        ("sigmoid", 0.5, 0.1, 0.413262),
        ("hinge", 0.5, 0.0, 0.0),
        ("hinge", 0.1, 0.0, 0.8),
        ("ipo", 0.5, 0.0, 1.0),
        ("ipo", 0.1, 0.0, 9.0),
        ("robust", 0.5, 0.1, 0.188262),
        ("exo", 0.5, 0.1, 0.114082),
        ("sppo", 0.25, 0.0, 2.0),
        ("discopop", 0.5, 0.0, 0.367879),
        ("nca", 0.5, 0.0, 1.198154),
        ("apo_zero", 0.5, 0.0, 0.755081),
        ("apo_down", 0.5, 0.0, 0.891401),
    ],
)
def test_losses_by_hand(loss: LossName, beta: float, label_smoothing: float, expected: float) -> None:
    """Policy -1 and -4, reference -2 and -3: log-ratios 1 and -1, h = 2.

    sigmoid, beta 0.5: ln(1 + exp(-1)) = 0.313262; smoothed 0.9 * 0.313262 + 0.1 * ln(1 + e) = 0.281936 + 0.131326
    hinge: 1 - 0.5 * 2 = 0; 1 - 0.1 * 2 = 0.8      ipo: (2 - 1 / 1)^2 = 1; (2 - 1 / 0.2)^2 = 9
    robust: (0.9 * 0.313262 - 0.1 * 1.313262) / 0.8 = (0.281936 - 0.131326) / 0.8
    exo: s = 0.731059: s (-0.313262 - ln 0.9) + (1 - s) (-1.313262 - ln 0.1) = -0.151988 + 0.266070
    sppo: (1 - 1 / 0.5)^2 + (-1 + 1 / 0.5)^2 = 2      discopop: m = sigmoid(20) = 1 - 2e-9, exp(-1) = 0.367879
    nca: r = 0.5, -0.5: 0.474077 + 0.974077 / 2 + 0.474077 / 2      apo_zero: 1 - 0.622459 + 0.377541
    apo_down: 0.622459 + 1 - 0.731059
    """
    losses, _ = Preference(loss, beta, label_smoothing).outcome(double(-1), double(-4), double(-2), double(-3))
    assert losses.tolist() == pytest.approx([expected], abs=1e-6)


def test_metrics_by_hand() -> None:
    """beta 0.5. Right: rewards 0.5 * 1 and 0.5 * -1, margin 1. Tie: 0.5 * 2 twice, half right. Wrong: 0 and 0.5 * 4."""
    chosen = double(-1, -3, -5).requires_grad_()
    losses, metrics = Preference("sigmoid", 0.5, 0.0).outcome(
        chosen, double(-4, -1, -2), double(-2, -5, -5), double(-3, -3, -6)
    )
    assert {name: values.tolist() for name, values in metrics.items()} == {
        "rewards/chosen": [0.5, 1.0, 0.0],
        "rewards/rejected": [-0.5, 1.0, 2.0],
        "rewards/margin": [1.0, 0.0, -2.0],
        "rewards/accuracy": [1.0, 0.5, 0.0],
        "logps/chosen": [-1.0, -3.0, -5.0],
        "logps/rejected": [-4.0, -1.0, -2.0],
    }
    assert losses.requires_grad
    assert not any(values.requires_grad for values in metrics.values())


@given(beta=st.floats(1e-3, 1e3), label_smoothing=st.floats(0, 0.499))
def test_sigmoid_starts_at_ln_2(beta: float, label_smoothing: float) -> None:
    loss = Preference("sigmoid", beta, label_smoothing)(torch.zeros(1), torch.zeros(1))
    assert loss.item() == pytest.approx(math.log(2), rel=1e-6)


@given(
    loss=st.sampled_from(LOSS_NAMES),
    beta=st.floats(0.01, 10),
    label_smoothing=st.floats(0, 0.499),
    logps=st.lists(st.tuples(*[st.floats(-1e3, 0)] * 4), min_size=1, max_size=5),
)
def test_losses_equal_their_naive_twins(
    loss: LossName, beta: float, label_smoothing: float, logps: list[tuple[float, ...]]
) -> None:
    e = smoothing(loss, label_smoothing)
    losses, _ = Preference(loss, beta, e).outcome(*double(*sum(logps, ())).view(-1, 4).unbind(1))
    expected = [naive(loss, beta, e, c - rc, r - rr) for c, r, rc, rr in logps]
    assert losses.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("e", [0.0, 0.2])
@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_gradients_equal_finite_differences(loss: LossName, e: float) -> None:
    e = smoothing(loss, e)
    logps = (torch.rand(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * -3).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: Preference(loss, 0.3, e).outcome(*t.unbind())[0], (logps,))


def test_gradient_of_dpo_is_weighted_by_how_wrong_the_reward_is() -> None:
    """DPO, section 4: the gradient with respect to log pi(y_w) is -beta sigmoid(-beta h), the opposite for y_l."""
    chosen, rejected = double(-1, -8).requires_grad_(), double(-4, -2).requires_grad_()
    losses, _ = Preference("sigmoid", 0.5, 0.0).outcome(chosen, rejected, double(-2, -2), double(-3, -3))
    losses.sum().backward()
    expected = -0.5 * torch.sigmoid(-0.5 * double(2, -7))
    torch.testing.assert_close(chosen.grad, expected)
    torch.testing.assert_close(rejected.grad, -expected)


@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_large_differences_stay_finite(loss: LossName) -> None:
    chosen = torch.tensor([-1e6, 1e6, 1e6, -1e6], requires_grad=True)
    rejected = torch.tensor([1e6, -1e6, 1e6, -1e6], requires_grad=True)
    losses = Preference(loss, 10.0, smoothing(loss, 0.1))(chosen, rejected)
    losses.sum().backward()
    assert bool(losses.isfinite().all())
    for side in (chosen, rejected):
        assert side.grad is not None
        assert bool(side.grad.isfinite().all())


@pytest.mark.parametrize("loss", [name for name in LOSS_NAMES if name not in SMOOTHED])
def test_label_smoothing_is_refused_where_it_would_be_ignored(loss: LossName) -> None:
    with pytest.raises(ParamsError, match=f"label_smoothing: loss '{loss}' does not use it"):
        Preference(loss, 0.1, 0.1)
    Preference(loss, 0.1, 0.0)


def test_label_smoothing_is_asked_for_where_the_loss_is_infinite_without_it() -> None:
    with pytest.raises(ParamsError, match="label_smoothing: loss 'exo' is infinite without it"):
        Preference("exo", 0.1, 0.0)


@pytest.mark.parametrize("loss", SMOOTHED)
def test_label_smoothing_changes_the_losses_that_take_it(loss: LossName) -> None:
    a, b = (Preference(loss, 0.1, e)(double(2), double(-1)) for e in (0.01, 0.3))
    assert not torch.allclose(a, b)


def test_robust_dpo_is_unbiased() -> None:
    """arXiv:2403.00409: in the mean over labels of which a share e is flipped, it is the loss on the clean ones."""
    e, clean = 0.3, Preference("sigmoid", 0.5, 0.0)
    noisy = Preference("robust", 0.5, e)
    chosen, rejected = double(2, -1), double(-1, 4)
    mean = (1 - e) * noisy(chosen, rejected) + e * noisy(rejected, chosen)
    torch.testing.assert_close(mean, clean(chosen, rejected))


def test_every_loss_of_the_parameters_is_there() -> None:
    assert list(LOSSES) == LOSS_NAMES


def start(preference: Preference, chosen: Tensor, rejected: Tensor) -> dict[str, float]:
    """The metrics of a first step, as the trainer means them, where the reference's log-probabilities are all zero."""
    losses, metrics = preference.outcome(chosen, rejected, torch.zeros_like(chosen), torch.zeros_like(chosen))
    return {name: values.mean().item() for name, values in {"loss": losses, **metrics}.items()}


CASES = [
    ("sigmoid", 0.1, 0.0),
    ("sigmoid", 1.0, 0.4),
    ("ipo", 0.1, 0.0),
    ("ipo", 0.5, 0.0),
    ("hinge", 0.1, 0.0),
    ("hinge", 2.0, 0.0),
    ("robust", 0.1, 0.2),
    ("exo", 0.1, 0.1),
    ("sppo", 0.1, 0.0),
    ("discopop", 0.1, 0.0),
    ("nca", 0.1, 0.0),
    ("apo_zero", 0.1, 0.0),
    ("apo_down", 0.1, 0.0),
]


@pytest.mark.parametrize("tolerance", START_TOLERANCE.values(), ids=START_TOLERANCE.keys())
@pytest.mark.parametrize(("loss", "beta", "e"), CASES)
def test_the_check_of_the_start_passes_where_policy_is_reference(
    loss: LossName, beta: float, e: float, tolerance: float
) -> None:
    """With a tolerance of 2 nats the losses at its ends can both lie above the loss at zero: IPO, beta 0.5: 25, 9 and 1."""
    preference = Preference(loss, beta, e)
    check = preference.check_start(tolerance)
    for off in (0.0, 0.4 * tolerance, -0.4 * tolerance):
        check(start(preference, double(off, 0), double(0, off)))


@pytest.mark.parametrize(("loss", "beta", "e"), CASES)
def test_the_check_of_the_start_stops_a_policy_that_is_not_its_reference(loss: LossName, beta: float, e: float) -> None:
    preference = Preference(loss, beta, e)
    check = preference.check_start(START_TOLERANCE["float32"])
    for chosen, rejected in [(0.1, 0.0), (0.0, -0.1), (0.1, 0.1), (math.nan, 0.0)]:
        with pytest.raises(NumericError, match=r"^step 0: the policy is not its reference: .*ref_logps"):
            check(start(preference, double(chosen, chosen), double(rejected, rejected)))


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_the_check_of_the_start_sees_errors_whose_mean_is_zero(loss: LossName) -> None:
    """Log-ratios of +5 and -5 cancel in the mean reward, not in a curved loss: dropout left on looks like this."""
    preference = Preference(loss, 0.1, 0.0)
    with pytest.raises(NumericError):
        preference.check_start(START_TOLERANCE["float32"])(start(preference, double(5, -5), double(0, 0)))


def test_held_out_rewards_by_hand() -> None:
    """Margins 1, 2, 3 and -2: three of four right, mean 1; sd 2.160247, se 1.080123, t(0.975, 3) = 3.182446."""
    metrics = reward_metrics(torch.tensor([1.0, 1, 2, -1]), torch.tensor([0.0, -1, -1, 1]))
    assert metrics["accuracy"] == 0.75
    assert (metrics["chosen"], metrics["rejected"], metrics["margin"]) == (0.75, -0.25, 1.0)
    assert (metrics["margin_low"], metrics["margin_high"]) == pytest.approx((-2.437435, 4.437435), abs=1e-5)
    assert metrics["accuracy_low"] < 0.75 < metrics["accuracy_high"]


def test_held_out_ties_are_not_ranked_right() -> None:
    metrics = reward_metrics(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.0]))
    assert metrics["accuracy"] == 0.5
