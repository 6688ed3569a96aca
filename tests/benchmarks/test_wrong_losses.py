"""What docs/wrong_losses.md says of two wrong losses, held where it can be computed: a policy that is a table.

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
INDIFFERENT, DECIDED = (0.0, 0.0), (12.0, 0.0)  # references: margins of 0 and of 12 nats, TARGET lying between
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
    """Gradient descent with rate 1 from the reference: losses, gradient norms, and the logits at the end."""
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
    """The logits where the loss is lowest, found from the reference."""
    logits = start(reference)
    search = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        search.zero_grad()
        value = 1e4 * loss(pair(logits, reference)).sum()  # beta is small, and with it the curvature
        value.backward()
        return value

    search.step(closure)
    return logits.detach()


def margin(logits: Tensor) -> float:
    """log pi(y_w) - log pi(y_l), nats."""
    return (logits[0] - logits[1]).item()


# The difference of two cross-entropies


def test_the_difference_of_cross_entropies_has_no_bound() -> None:
    """It is linear in the margin: after 1,000 steps it falls as fast as in the first one, and takes y_l to probability 0."""
    losses, norms, logits = descend(DIFFERENCE, INDIFFERENT, 1000)
    assert losses[999] < min(losses[:100]) - 1000
    assert norms[999] == pytest.approx(norms[0])
    assert logits.log_softmax(0)[1].item() == pytest.approx(-2000, abs=1)  # two nats a step


def test_dpo_has_a_bound_and_loses_its_pull_near_it() -> None:
    """Its gradient is beta s(-beta h): what is learnt is left alone, which is what keeps the policy near its reference."""
    losses, norms, logits = descend(DPO, INDIFFERENT, 1000)
    assert min(losses) > 0
    assert losses == sorted(losses, reverse=True)
    assert norms[999] < norms[0] / 5
    assert margin(logits) < 100


def test_the_difference_of_cross_entropies_knows_no_reference() -> None:
    """The same policy gets the same loss whatever the reference; DPO's is ln 2 where they agree, and only there."""
    policy = start(DECIDED)
    values = [DIFFERENCE(pair(policy, reference)).item() for reference in (INDIFFERENT, DECIDED)]
    assert values[0] == values[1]
    right = [DPO(pair(policy, reference)).item() for reference in (INDIFFERENT, DECIDED)]
    assert right[1] == pytest.approx(math.log(2))
    assert right[0] < right[1] - 0.3


# Probabilistic DPO without the reference


@pytest.mark.parametrize("reference", [INDIFFERENT, DECIDED])
def test_without_the_reference_the_optimum_is_one_policy(reference: tuple[float, float]) -> None:
    """log pi(y_w) - log pi(y_l) = logit(p) / beta for every reference: what that knows is no part of the answer."""
    assert margin(optimum(NO_REFERENCE, reference)) == pytest.approx(WRONG.TARGET, abs=1e-4)


@pytest.mark.parametrize("reference", [INDIFFERENT, DECIDED])
def test_with_the_reference_the_optimum_moves_with_it(reference: tuple[float, float]) -> None:
    """h* = logit(p) / beta on top of the reference's own margin: the label says how much to add."""
    given = reference[0] - reference[1]
    assert margin(optimum(RIGHT, reference)) == pytest.approx(given + WRONG.TARGET, abs=1e-4)


def test_a_pair_that_the_reference_tells_apart_is_pushed_back() -> None:
    """The chosen response was preferred, and the first step without the reference makes it less likely."""
    h = {
        name: margin(descend(loss, DECIDED, 1)[2]) - margin(start(DECIDED).detach())
        for name, loss in (("right", RIGHT), ("wrong", NO_REFERENCE))
    }
    assert h["right"] > 0 > h["wrong"]


# The benchmark script


@pytest.mark.parametrize("p", [1.0, 0.7])
def test_the_losses_are_what_the_library_makes_of_soft_labels(p: float) -> None:
    """So the comparison is with the project's own DPO; the wrong arm is what `reference_free: true` asks for by name."""
    none: dict[str, Any] = dict.fromkeys((field.name for field in dataclasses.fields(LossOptions)), None)
    label = torch.tensor([p], dtype=torch.float64)
    soft = pair(torch.tensor([1.0, -2.0], dtype=torch.float64), DECIDED)._replace(preference=label)
    for free, loss in ((None, WRONG.probabilistic), (True, WRONG.without_reference)):
        preference = Preference("sigmoid", WRONG.BETA, LossOptions(**{**none, "reference_free": free}), {})
        torch.testing.assert_close(loss(soft, p), preference(soft)[0])


def test_the_shares_by_hand() -> None:
    """The target is ln(0.7 / 0.3) / 0.1 = 8.473: 9 is pushed back, 9 and -9 are beyond; h* = 8.473 less -9, 8, 9."""
    assert pytest.approx(8.473, abs=1e-3) == WRONG.TARGET
    found = WRONG.wrong_way(torch.tensor([-9.0, 8.0, 9.0]))
    assert found["pushed_back"] == pytest.approx(1 / 3)
    assert found["beyond"] == pytest.approx(2 / 3)
    assert found["optimum_mean"] == pytest.approx(8.473 - 8 / 3, abs=1e-3)


def test_the_measures_by_hand() -> None:
    """Pairs with reference margins 10 and 0, log-ratios (2, -2) and (-1, 1): h = 4 and -2, squares 8 and 2 over 4."""
    found = WRONG.measure(
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
    assert found["accuracy"] == 0.5
    assert found["margin"] == pytest.approx(1.0)
    assert (found["margin_pushed_back"], found["margin_others"]) == (4.0, -2.0)
    assert found["correlation"] == pytest.approx(1.0)
    assert found["chosen_per_token"] == pytest.approx(0.1)
    assert found["rejected_per_token"] == pytest.approx(-0.1)
    assert found["perplexity"] == pytest.approx(math.exp(2.9))
    assert found["kl"] == pytest.approx((2.0 + 0.5) / 2)
