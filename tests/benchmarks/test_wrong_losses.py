"""The claims of docs/wrong_losses.md about two wrong losses, for a policy that is a table of logits.

The policy has two responses and two logits, in float64, so that nothing but the loss decides where it goes.
"""

import dataclasses
import math
import runpy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from paths import ROOT
from torch import Tensor

from prefdag.config.loss_options import LossOptions
from prefdag.dpo.pair_batch import PairBatch, Response
from prefdag.dpo.preference import Preference

WRONG = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "wrong_losses.py")))

Loss = Callable[[PairBatch], Tensor]
INDIFFERENT, DECIDED = (0.0, 0.0), (12.0, 0.0)  # references with margins of 0 and 12 nats; TARGET is between them
DPO: Loss = WRONG.ARMS["DPO"]
RIGHT: Loss = WRONG.ARMS["probabilistic DPO, p = 0.7"]
NO_REFERENCE: Loss = WRONG.ARMS["without the reference, p = 0.7"]
DIFFERENCE: Loss = WRONG.ARMS["difference of cross-entropies"]


def pair(logits: Tensor, reference: tuple[float, float]) -> PairBatch:
    """A pair whose chosen response is the first of two, each of one token."""
    policy = logits.log_softmax(0)
    ref = torch.tensor(reference, dtype=torch.float64).log_softmax(0)
    one = torch.ones(1, dtype=torch.float64)
    return PairBatch(Response(policy[:1], ref[:1], one), Response(policy[1:], ref[1:], one))


def start(reference: tuple[float, float]) -> Tensor:
    """The policy's logits at step 0: the reference's."""
    return torch.tensor(reference, dtype=torch.float64, requires_grad=True)


def descend(loss: Loss, reference: tuple[float, float], steps: int) -> tuple[list[float], list[float], Tensor]:
    """Gradient descent with rate 1 from the reference. Returns the losses, the gradient norms and the final logits."""
    logits = start(reference)
    losses, norms = [], []
    for _ in range(steps):
        value = loss(pair(logits, reference)).sum()
        (gradient,) = torch.autograd.grad(value, logits)
        losses.append(value.item())
        norms.append(gradient.norm().item())
        logits = (logits - gradient).detach().requires_grad_()
    return losses, norms, logits.detach()


def optimum(loss: Loss, reference: tuple[float, float]) -> Tensor:
    """The logits that minimise the loss, searched from the reference."""
    logits = start(reference)
    search = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        search.zero_grad()
        value = 1e4 * loss(pair(logits, reference)).sum()  # scaled up, since a small beta gives a small curvature
        value.backward()
        return value

    search.step(closure)
    return logits.detach()


def margin(logits: Tensor) -> float:
    """log pi(y_w) - log pi(y_l), nats."""
    return (logits[0] - logits[1]).item()


# The difference of two cross-entropies


@pytest.mark.slow
def test_the_difference_of_cross_entropies_has_no_bound() -> None:
    """It is linear in the margin: it falls as fast at step 1,000 as at the first, and takes y_l to probability 0."""
    losses, norms, logits = descend(DIFFERENCE, INDIFFERENT, 1000)
    assert losses[999] < min(losses[:100]) - 1000
    assert norms[999] == pytest.approx(norms[0])
    assert logits.log_softmax(0)[1].item() == pytest.approx(-2 * 1000, abs=1)  # two nats per step


@pytest.mark.slow
def test_dpo_has_a_bound_and_a_vanishing_gradient() -> None:
    """Its gradient, beta s(-beta h), vanishes as the margin grows. This keeps the policy near its reference."""
    losses, norms, logits = descend(DPO, INDIFFERENT, 1000)
    assert min(losses) > 0
    assert losses == sorted(losses, reverse=True)
    assert norms[999] < norms[0] / 5
    assert margin(logits) < 100


def test_the_difference_of_cross_entropies_ignores_the_reference() -> None:
    """The same policy has the same loss for every reference. DPO's loss is ln 2 only if the policy is the reference."""
    policy = start(DECIDED)
    values = [DIFFERENCE(pair(policy, reference)).item() for reference in (INDIFFERENT, DECIDED)]
    assert values[0] == values[1]
    right = [DPO(pair(policy, reference)).item() for reference in (INDIFFERENT, DECIDED)]
    assert right[1] == pytest.approx(math.log(2))
    assert right[0] < right[1] - 0.3


# Probabilistic DPO without the reference


@pytest.mark.parametrize("reference", [INDIFFERENT, DECIDED])
def test_without_the_reference_the_optimum_does_not_depend_on_it(reference: tuple[float, float]) -> None:
    """log pi(y_w) - log pi(y_l) = logit(p) / beta for every reference."""
    assert margin(optimum(NO_REFERENCE, reference)) == pytest.approx(WRONG.TARGET, abs=1e-4)


@pytest.mark.parametrize("reference", [INDIFFERENT, DECIDED])
def test_with_the_reference_the_optimum_depends_on_it(reference: tuple[float, float]) -> None:
    """The optimal margin is the reference's margin plus h* = logit(p) / beta."""
    reference_margin = reference[0] - reference[1]
    assert margin(optimum(RIGHT, reference)) == pytest.approx(reference_margin + WRONG.TARGET, abs=1e-4)


def test_without_the_reference_a_decided_pair_is_pushed_back() -> None:
    """The reference prefers the chosen response, and the first step without the reference makes it less likely."""
    h = {
        name: margin(descend(loss, DECIDED, 1)[2]) - margin(start(DECIDED).detach())
        for name, loss in (("right", RIGHT), ("wrong", NO_REFERENCE))
    }
    assert h["right"] > 0 > h["wrong"]


# The benchmark script


@pytest.mark.parametrize("p", [1.0, 0.7])
def test_the_losses_are_the_librarys_for_soft_labels(p: float) -> None:
    """The right arm is the project's own DPO. The wrong arm is the project's DPO with `reference_free: true`."""
    none: dict[str, Any] = dict.fromkeys((field.name for field in dataclasses.fields(LossOptions)), None)
    label = torch.tensor([p], dtype=torch.float64)
    soft = pair(torch.tensor([1.0, -2.0], dtype=torch.float64), DECIDED)._replace(preference=label)
    for free, loss in ((None, WRONG.probabilistic), (True, WRONG.without_reference)):
        preference = Preference("sigmoid", WRONG.BETA, LossOptions(**{**none, "reference_free": free}), {})
        torch.testing.assert_close(loss(soft, p), preference(soft)[0])


def test_the_shares_by_hand() -> None:
    """The target is logit(0.7) / 0.1 = 8.473. So 9 is pushed back, and 9 and -9 are beyond."""
    target = math.log(0.7 / 0.3) / 0.1
    assert pytest.approx(target) == WRONG.TARGET
    shares = WRONG.wrong_way(torch.tensor([-9.0, 8.0, 9.0]))
    assert shares["pushed_back"] == pytest.approx(1 / 3)
    assert shares["beyond"] == pytest.approx(2 / 3)
    assert shares["optimum_mean"] == pytest.approx(((target + 9) + (target - 8) + (target - 9)) / 3)


def test_the_measures_by_hand() -> None:
    """Two pairs with reference margins 10 and 0 and log-ratios (2, -2) and (-1, 1), so that h is 2 + 2 and -1 - 1."""
    measures = WRONG.measure(
        PairBatch(
            Response(
                logps=torch.tensor([-8.0, -21.0]),
                ref_logps=torch.tensor([-10.0, -20.0]),
                tokens=torch.tensor([4.0, 6.0]),
            ),
            Response(
                logps=torch.tensor([-22.0, -19.0]),
                ref_logps=torch.tensor([-20.0, -20.0]),
                tokens=torch.tensor([5.0, 5.0]),
            ),
        )
    )
    assert measures["accuracy"] == 1 / 2
    assert measures["margin"] == pytest.approx((4 - 2) / 2)
    assert (measures["margin_pushed_back"], measures["margin_others"]) == (2 + 2, -1 - 1)
    assert measures["correlation"] == pytest.approx(1.0)  # two points
    assert measures["chosen_per_token"] == pytest.approx((2 - 1) / (4 + 6))
    assert measures["rejected_per_token"] == pytest.approx((-2 + 1) / (5 + 5))
    assert measures["perplexity"] == pytest.approx(math.exp((8 + 21) / (4 + 6)))
    assert measures["kl"] == pytest.approx(((2**2 + 2**2) / 4 + (1**2 + 1**2) / 4) / 2)
