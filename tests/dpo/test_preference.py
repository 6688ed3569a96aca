"""Everything around a loss: options, soft labels, sums, constraints and metrics; the start check; optima."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from math import exp, log, nan
from typing import Any

import naive_losses as naive
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_losses import TAKES, Pair, Response, batch, double, preference, s, smoothed
from torch import Tensor

from prefdag.config.constraints import Constraint
from prefdag.config.loss import LossName
from prefdag.dpo import pair_batch
from prefdag.dpo.pair_batch import PairBatch
from prefdag.dpo.preference import Preference
from prefdag.dpo.start import START_TOLERANCE, StartCheck
from prefdag.lifecycle.errors import DataError, NumericError, ParamsError

LOSS_NAMES = list(TAKES)
OF_MARGIN: list[LossName] = ["sigmoid", "robust", "exo", "hinge", "ipo", "discopop"]
UNPAIRED: list[LossName] = ["apo_zero", "kto", "bco"]
SORTING: list[LossName] = ["aot", "aot_unpaired"]
WITHOUT_REFERENCE: list[LossName] = ["cpo", "simpo", "orpo"]
FAMILIES = [[name for name in LOSS_NAMES if name not in WITHOUT_REFERENCE], *([name] for name in WITHOUT_REFERENCE)]

# Two tokens and four. Log-probabilities: -1 and -4 under the policy, -2 and -3 under the reference. Log-ratios: 1 and -1.
CHOSEN = Response([-0.25, -0.75], [-1.5, -0.5], confidence=log(0.5))
REJECTED = Response([-1.0, -0.5, -2.0, -0.5], [-0.5, -0.5, -1.0, -1.0], confidence=log(0.8))
BY_HAND = Pair(CHOSEN, REJECTED)


def losses_of(pref: Preference, *pairs: Pair) -> list[float]:
    return pref(batch(pairs))[0].tolist()


@pytest.mark.parametrize(
    ("loss", "options", "expected"),
    [
        ("sigmoid", {}, log(1 + exp(-1))),
        ("sigmoid", {"reduction": "sum"}, log(1 + exp(-1))),
        ("sigmoid", {"reduction": "mean"}, -log(s(0.5 * (1 / 2 + 1 / 4)))),
        ("ipo", {"reduction": "mean"}, (1 / 2 + 1 / 4 - 1 / (2 * 0.5)) ** 2),
        ("sigmoid", {"reference_free": True}, -log(s(0.5 * (-1 + 4)))),
        ("sigmoid", {"reduction": "mean", "reference_free": True}, -log(s(0.5 * (-1 / 2 + 4 / 4)))),
        # u = exp(1) and exp(-1): f'(u) is 1 - 1/u, ln(2u / (1 + u)) and (1 - u^-alpha) / alpha.
        ("sigmoid", {"f_divergence": "forward_kl"}, -log(s(0.5 * ((1 - exp(-1)) - (1 - exp(1)))))),
        (
            "sigmoid",
            {"f_divergence": "js"},
            -log(s(0.5 * (log(2 * exp(1) / (1 + exp(1))) - log(2 * exp(-1) / (1 + exp(-1)))))),
        ),
        ("sigmoid", {"f_divergence": "alpha"}, -log(s(0.5 * ((1 - exp(-0.5)) - (1 - exp(0.5))) / 0.5))),
        (
            "sigmoid",
            {"f_divergence": "alpha", "f_alpha": 0.25},
            -log(s(0.5 * ((1 - exp(-0.25)) - (1 - exp(0.25))) / 0.25)),
        ),
        # The rejected response's log-ratio: -1.5 + 1 for the two shared tokens, -2.5 + 2 for the other two.
        ("hinge", {"ld_alpha": 0.0}, 1 - 0.5 * (1 + 0.5)),
        ("hinge", {"ld_alpha": 0.5}, 1 - 0.5 * (1 + 0.5 + 0.5 * 0.5)),
        ("hinge", {"ld_alpha": 1.0}, 1 - 0.5 * (1 + 0.5 + 0.5)),
        ("sigmoid", {"wpo": True}, -0.5 * 0.8 * log(s(1))),
        ("cpo", {}, -log(s(0.5 * (-1 + 4))) + 1 / 2),  # two tokens
        ("cpo", {"sft_weight": 2.0}, -log(s(0.5 * (-1 + 4))) + 2 * 1 / 2),
        ("simpo", {"simpo_gamma": 0.25}, -log(s(0.5 * (-1 / 2 + 4 / 4) - 0.25))),
        # p = exp(-1/2) and exp(-1): the odds p / (1 - p) are 1 / (exp(1/2) - 1) and 1 / (exp(1) - 1).
        ("orpo", {}, -0.5 * log(s(log((exp(1) - 1) / (exp(1 / 2) - 1)))) + 1 / 2),
        ("kto", {"desirable_weight": 2.0, "undesirable_weight": 3.0}, (2 + 3) * s(-0.5) / 2),  # z0 = 0
    ],
)
def test_options_by_hand(loss: LossName, options: dict[str, Any], expected: float) -> None:
    """beta 0.5, log-ratios 1 and -1: h = 2, z = 1; s is the sigmoid."""
    assert losses_of(preference(loss, **options), BY_HAND) == pytest.approx([expected], rel=1e-9)


def test_soft_labels_by_hand() -> None:
    """z = 1, and the chosen response is preferred with probability 0.8."""
    soft = Pair(CHOSEN, REJECTED, preference=0.8)
    assert losses_of(preference("sigmoid"), soft) == pytest.approx([-0.8 * log(s(1)) - 0.2 * log(s(-1))], rel=1e-9)
    assert losses_of(preference("hinge"), soft) == pytest.approx([0.8 * (1 - 1) + 0.2 * (1 + 1)], rel=1e-9)


def test_weighted_sum_by_hand() -> None:
    """MPO's sum: 0.8 sigmoid + 0.2 bco + sft. beta 0.5: z = 1, and the rewards 0.5 and -0.5 have shift 0."""
    pref = preference({"sigmoid": 0.8, "bco": 0.2, "sft": 1.0})
    assert losses_of(pref, BY_HAND) == pytest.approx([-0.8 * log(s(1)) - 0.2 * 2 * log(s(0.5)) + 1 / 2], rel=1e-9)


def test_constraints_by_hand() -> None:
    """The log-ratios are -3 and 1; hinge, beta 0.5. Thresholds of 3 are not exceeded and leave the loss as it is."""
    pair = Pair(Response([-5], [-2]), Response([-2], [-3]))
    hinge, kl, chosen_drop = 1 + 0.5 * (3 + 1), (3**2 + 1**2) / 4, 3.0
    violated = hinge + 0.1 * (kl - 1) + 2 * (chosen_drop - 0.5)
    for thresholds, loss in (((1.0, 0.5), violated), ((3.0, 3.0), hinge)):
        pref = preference(
            "hinge",
            constraints={
                "kl": Constraint(threshold=thresholds[0], multiplier=0.1, dual_rate=0.0),
                "chosen_drop": Constraint(threshold=thresholds[1], multiplier=2.0, dual_rate=0.0),
            },
        )
        losses, metrics = pref(batch([pair]))
        assert losses.tolist() == pytest.approx([loss])
        assert metrics["constraint/kl"].tolist() == [kl]
        assert metrics["constraint/chosen_drop"].tolist() == [chosen_drop]


def test_constraints_pass_a_gradient() -> None:
    """The chosen log-ratio r is -2: chosen_drop is -r, its gradient -1; this response's part of kl is r^2 / 4, r / 2 = -1."""
    of = batch([Pair(Response([-5], [-3]), Response([-2], [-2]))])
    of.chosen.logps.requires_grad_()
    for name, gradient in (("chosen_drop", 0.7 * -1), ("kl", 0.7 * -2 / 2)):
        pref = preference("hinge", 1e-9, constraints={name: Constraint(threshold=0.0, multiplier=0.7, dual_rate=0.0)})
        (of_chosen,) = torch.autograd.grad(pref(of)[0].sum(), of.chosen.logps)
        assert of_chosen.item() == pytest.approx(gradient, abs=1e-6)


def test_multipliers_climb_while_their_constraint_is_violated() -> None:
    """Dual ascent with threshold 1 and rate 0.5 from a multiplier of 0.1, which never falls below 0."""
    pref = preference("sigmoid", constraints={"kl": Constraint(threshold=1.0, multiplier=0.1, dual_rate=0.5)})
    for kl, multiplier in (
        (3.0, 0.1 + 0.5 * (3 - 1)),
        (3.0, 1.1 + 0.5 * (3 - 1)),
        (0.0, 2.1 + 0.5 * (0 - 1)),
        (0.0, 1.6 + 0.5 * (0 - 1)),
        (0.0, 1.1 + 0.5 * (0 - 1)),
        (0.0, 0.6 + 0.5 * (0 - 1)),
        (0.0, 0.0),  # 0.1 - 0.5 is negative
        (0.0, 0.0),
        (3.0, 0.0 + 0.5 * (3 - 1)),
    ):
        pref.after_step({"constraint/kl": kl}, epoch_ends=False)
        assert pref.metrics()["multiplier/kl"] == pytest.approx(multiplier)
    assert pref.state()["multipliers"].tolist() == pytest.approx([1.0])


def test_each_constraint_has_its_own_multiplier_which_weighs_the_loss() -> None:
    """Only chosen_drop is violated, by 2 nats."""
    constraints: dict[str, Constraint] = {
        "kl": Constraint(threshold=10.0, multiplier=0.0, dual_rate=0.5),
        "chosen_drop": Constraint(threshold=0.0, multiplier=0.0, dual_rate=0.5),
    }
    pref = preference("sigmoid", constraints=constraints)
    of = batch([Pair(Response([-5], [-3]), Response([-2], [-2]))])
    before, metrics = pref(of)
    pref.after_step({name: values.mean().item() for name, values in metrics.items()}, epoch_ends=True)
    assert pref.metrics() == {"multiplier/kl": 0.0, "multiplier/chosen_drop": 0.5 * 2}
    assert (pref(of)[0] - before).tolist() == pytest.approx([1 * 2])


def test_a_multiplier_with_dual_rate_zero_stays() -> None:
    pref = preference("sigmoid", constraints={"kl": Constraint(threshold=1.0, multiplier=0.3, dual_rate=0.0)})
    pref.after_step({"constraint/kl": 100.0}, epoch_ends=False)
    assert pref.metrics() == {"multiplier/kl": 0.3}


# Naive twins

TOKENS = st.lists(st.tuples(st.floats(-3, -0.05), st.floats(-3, -0.05)), min_size=1, max_size=4)
RESPONSES = st.builds(
    lambda tokens, confidence: Response([t[0] for t in tokens], [t[1] for t in tokens], confidence),
    TOKENS,
    st.floats(-2, 0),
)
CERTAIN_PAIRS = st.builds(Pair, RESPONSES, RESPONSES, kl=st.floats(-1, 3))
PAIRS = st.builds(Pair, RESPONSES, RESPONSES, preference=st.sampled_from([1.0, 0.8, 0.0]), kl=st.floats(-1, 3))
ROWS = st.one_of(
    PAIRS,
    st.builds(Pair, RESPONSES, st.none(), kl=st.floats(-1, 3)),
    st.builds(Pair, st.none(), RESPONSES, kl=st.floats(-1, 3)),
)
VALUES: Mapping[str, st.SearchStrategy[Any]] = {
    "label_smoothing": st.floats(0.01, 0.45),
    "reduction": st.sampled_from(["sum", "mean"]),
    "reference_free": st.booleans(),
    "f_divergence": st.sampled_from(["forward_kl", "js", "alpha"]),
    "f_alpha": st.floats(0.05, 0.95),
    "ld_alpha": st.floats(0, 1),
    "wpo": st.booleans(),
    "simpo_gamma": st.floats(0, 2),
    "discopop_tau": st.floats(0.05, 0.5),
    "sft_weight": st.floats(0, 2),
    "desirable_weight": st.floats(0.1, 3),
    "undesirable_weight": st.floats(0.1, 3),
}


@st.composite
def options_of(draw: st.DrawFn, taken: set[str]) -> dict[str, Any]:
    """Some of the options that a loss takes, without those that others of them make useless."""
    chosen = draw(st.sets(st.sampled_from(sorted(taken))))
    drawn = {key: draw(VALUES[key]) for key in sorted(chosen)}
    if drawn.get("reduction") == "mean":
        drawn.pop("ld_alpha", None)
    if drawn.get("reference_free"):
        drawn.pop("f_divergence", None)
    if drawn.get("f_divergence") != "alpha":
        drawn.pop("f_alpha", None)
    return drawn


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSS_NAMES)
@given(data=st.data(), beta=st.floats(0.05, 2))
@settings(deadline=None, max_examples=40)
def test_any_options_equal_the_naive_twin(loss: LossName, data: st.DataObject, beta: float) -> None:
    """From log-probabilities of tokens, for pairs, rows with one response and soft labels."""
    options = data.draw(options_of(TAKES[loss]))
    rows = ROWS if loss in UNPAIRED else CERTAIN_PAIRS if loss in SORTING else PAIRS
    pairs = data.draw(st.lists(rows, min_size=1, max_size=4))
    expected = naive.losses({loss: 1.0}, pairs, beta, options)
    assert losses_of(preference(loss, beta, **options), *pairs) == pytest.approx(expected, rel=1e-7, abs=1e-9)


@pytest.mark.slow
@given(data=st.data(), beta=st.floats(0.05, 2))
@settings(deadline=None, max_examples=60)
def test_sums_equal_the_naive_twin(data: st.DataObject, beta: float) -> None:
    names = data.draw(
        st.sets(st.sampled_from([*FAMILIES[0], "sft"]), min_size=1, max_size=4).filter(lambda s: s != {"sft"})
    )
    terms: dict[LossName, float] = {name: data.draw(st.floats(0.1, 2)) for name in sorted(names)}
    rows = ROWS if names <= set(UNPAIRED) else CERTAIN_PAIRS if names & set(SORTING) else PAIRS
    pairs = data.draw(st.lists(rows, min_size=1, max_size=4))
    options: dict[str, Any] = {"reduction": "mean"} if "kto" not in names and data.draw(st.booleans()) else {}
    expected = naive.losses(terms, pairs, beta, options)
    assert losses_of(preference(terms, beta, **options), *pairs) == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_ld_alpha_leaves_cross_entropy_alone() -> None:
    """A chosen response of four tokens, a rejected one of two. CPO's cross-entropy and TRL's behave the same."""
    pref = preference({"hinge": 1.0, "sft": 1.0}, ld_alpha=0.0)
    expected = naive.losses({"hinge": 1.0, "sft": 1.0}, [naive.swapped(BY_HAND)], 0.5, {"ld_alpha": 0.0})
    assert losses_of(pref, naive.swapped(BY_HAND)) == pytest.approx(expected)


# Gradients

SETS: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.2},
    {"reduction": "mean"},
    {"reference_free": True},
    {"f_divergence": "forward_kl"},
    {"f_divergence": "js", "reduction": "mean", "wpo": True},
    {"f_divergence": "alpha", "f_alpha": 0.3, "ld_alpha": 0.4},
    {"ld_alpha": 0.4},
    {"simpo_gamma": 1.0, "wpo": True},
    {"sft_weight": 0.3, "wpo": True},
    {"discopop_tau": 0.3},
    {"desirable_weight": 0.7, "undesirable_weight": 1.3},
]
LOSSES_AND_OPTIONS = [(loss, o) for loss in LOSS_NAMES for o in SETS if set(o) <= TAKES[loss]]


def some_pairs(loss: LossName) -> list[Pair]:
    """Four pairs of uneven lengths: soft labels if the loss can weigh rows, rows with one response if it accepts them."""
    random = torch.Generator().manual_seed(0)

    def response(length: int) -> Response:
        policy, reference = (torch.rand(2, length, generator=random, dtype=torch.float64) * -1.5 - 0.05).tolist()
        return Response(policy, reference, confidence=-0.3 * length)

    pairs = [
        Pair(response(w), response(r), 1.0 if loss in SORTING else p, kl=kl)
        for w, r, p, kl in [(2, 4, 1.0, 0.5), (3, 1, 0.7, -0.2), (2, 2, 1.0, 0.9), (1, 3, 0.1, 0.0)]
    ]
    return [*pairs, Pair(response(3), None, kl=0.1), Pair(None, response(2))] if loss in UNPAIRED else pairs


def with_logps(of: PairBatch, logps: Sequence[Tensor], shared_logps: Sequence[Tensor]) -> PairBatch:
    """The batch with these log-probabilities under the policy, each a tuple of (chosen, rejected)."""
    chosen, rejected = (
        response._replace(logps=of_response, shared_logps=of_shared_part)
        for response, of_response, of_shared_part in zip((of.chosen, of.rejected), logps, shared_logps, strict=True)
    )
    return of._replace(chosen=chosen, rejected=rejected)


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "options"), [(loss, o) for loss, o in LOSSES_AND_OPTIONS if loss != "bco"])
def test_gradients_equal_finite_differences(loss: LossName, options: dict[str, Any]) -> None:
    """With respect to the log-probabilities that have a gradient in training."""
    of, pref = batch(some_pairs(loss)), preference(loss, 0.3, **options)

    def losses(chosen: Tensor, rejected: Tensor, shared_chosen: Tensor, shared_rejected: Tensor) -> Tensor:
        return pref(with_logps(of, (chosen, rejected), (shared_chosen, shared_rejected)))[0]

    tensors: Any = (of.chosen.logps, of.rejected.logps, of.chosen.shared_logps, of.rejected.shared_logps)
    assert torch.autograd.gradcheck(losses, [t.requires_grad_() for t in tensors])


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "options"), LOSSES_AND_OPTIONS)
def test_gradients_equal_those_of_the_naive_twin(loss: LossName, options: dict[str, Any]) -> None:
    """Central differences of the naive sum of losses; the shifts of KTO and BCO stay fixed."""
    pairs = some_pairs(loss)
    of: Any = batch(pairs)
    # A step of a response's first token, which is always in the shared part.
    steps = [torch.zeros(len(pairs), dtype=torch.float64, requires_grad=True) for _ in range(2)]
    logps, shared_logps = (
        [getattr(response, name) + step for response, step in zip(of[:2], steps, strict=True)]
        for name in ("logps", "shared_logps")
    )
    losses = preference(loss, 0.3, **options)(with_logps(of, logps, shared_logps))[0]
    for side, gradient in zip(("chosen", "rejected"), torch.autograd.grad(losses.sum(), steps), strict=True):
        for i, pair in enumerate(pairs):
            response: Response | None = getattr(pair, side)
            if response is None:
                assert gradient[i] == 0
                continue
            ends = []
            for step in (1e-5, -1e-5):
                changed = Response(
                    [response.policy[0] + step, *response.policy[1:]], response.reference, response.confidence
                )
                rows = [*pairs[:i], Pair(**vars(pair) | {side: changed}), *pairs[i + 1 :]]
                ends.append(sum(naive.losses({loss: 1.0}, rows, 0.3, options, at=pairs)))
            assert gradient[i].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_confidence_and_kl_pass_no_gradient(side: str) -> None:
    """Not even if they are computed from tensors that are trained."""
    leaf = double(-0.3).requires_grad_()
    of = batch([BY_HAND])
    confident = of._replace(**{side: getattr(of, side)._replace(confidence=leaf)})
    wpo = preference("sigmoid", wpo=True)(confident)[0].sum()
    kto = preference("kto")(of._replace(kl=leaf))[0].sum()
    assert not wpo.requires_grad
    assert not kto.requires_grad


# Soft labels


@pytest.mark.parametrize("loss", [name for name in LOSS_NAMES if name not in SORTING])
def test_soft_labels_of_one_are_hard_and_swapped_pairs_agree(loss: LossName) -> None:
    """A pair with preference p equals the swapped pair with preference 1 - p, whatever the loss."""
    pairs = some_pairs(loss)
    pref, hard = preference(loss), batch(pairs)._replace(preference=None)
    ones = hard._replace(preference=torch.ones(len(pairs)))
    torch.testing.assert_close(pref(ones)[0], pref(hard)[0])
    for p in (0.0, 0.3, 1.0):
        as_given = hard._replace(preference=torch.full((len(pairs),), p))
        swapped = hard.swapped()._replace(preference=torch.full((len(pairs),), 1 - p))
        torch.testing.assert_close(pref(as_given)[0], pref(swapped)[0])


def test_swapped_exchanges_the_responses_and_nothing_else() -> None:
    of = batch(some_pairs("bco"))
    other = of.swapped()
    assert other.chosen is of.rejected
    assert other.rejected is of.chosen
    assert other[2:] == of[2:]


# Metrics


def test_metrics_by_hand() -> None:
    """beta 0.5. The pairs are ranked right, tied and wrong: log-ratios 1 and -1, 2 and 2, 0 and 4.

    Lengths of the chosen and rejected responses: 2 and 4 tokens, 1 and 1, 3 and 1.
    """
    pairs = [
        BY_HAND,
        Pair(Response([-3], [-5]), Response([-1], [-3])),
        Pair(Response([-1, -1, -3], [-1, -3, -1]), Response([-2], [-6])),
    ]
    of = batch(pairs)
    of.chosen.logps.requires_grad_()
    losses, metrics = preference("sigmoid")(of)
    assert {name: values.tolist() for name, values in metrics.items()} == {
        "rewards/chosen": [0.5 * 1, 0.5 * 2, 0.5 * 0],
        "rewards/rejected": [0.5 * -1, 0.5 * 2, 0.5 * 4],
        "rewards/margin": [0.5 * (1 + 1), 0.5 * (2 - 2), 0.5 * (0 - 4)],
        "rewards/accuracy": [1.0, 0.5, 0.0],
        "rewards/saturated": [0.0, 0.0, 0.0],
        "rewards/longer": [-1 * 1.0, 0 * 0.0, 1 * -2.0],  # the sign of the length difference times the margin
        "lengths/longer": [-1.0, 0.0, 1.0],
        "logps/chosen": [-0.25 - 0.75, -3.0, -1.0 - 1 - 3],
        "logps/rejected": [-1.0 - 0.5 - 2 - 0.5, -1.0, -2.0],
        "kl": [(1 + 1) / 4, (2**2 + 2**2) / 4, (0 + 4**2) / 4],
        "logratios/square": [(1 + 1) / 2, (2**2 + 2**2) / 2, (0 + 4**2) / 2],
        "gradient/zero": [0.0, 0.0, 0.0],
    }
    assert losses.requires_grad
    assert not any(values.requires_grad for values in metrics.values())


def test_accuracy_of_soft_labels_by_hand() -> None:
    """The share of labels that the margin's sign gets right: p where it is positive, 1 - p where negative, 1/2 at a tie."""
    right, tie = BY_HAND, Pair(CHOSEN, CHOSEN)
    pairs = [Pair(**vars(pair) | {"preference": 0.8}) for pair in (right, naive.swapped(right), tie)]
    accuracy = preference("sigmoid")(batch(pairs))[1]["rewards/accuracy"]
    assert accuracy.tolist() == pytest.approx([0.8, 1 - 0.8, 1 / 2])


def pair_of(ratio: float) -> Pair:
    """A pair of one-token responses whose log-ratios are `ratio` and 0."""
    return Pair(Response([ratio - 50], [-50]), Response([-1], [-1]))


def test_saturated_margins_by_hand() -> None:
    """A margin beyond 4.6 nats, where the sigmoid is 0.99; with beta 0.5, a log-ratio beyond 9.2."""
    metrics = preference("sigmoid")(batch([pair_of(r) for r in (9.4, 9.0, -9.0, -9.4)]))[1]
    assert metrics["rewards/saturated"].tolist() == [1.0, 0.0, 0.0, 1.0]


def test_pairs_without_a_gradient_by_hand() -> None:
    """Hinge, beta 0.5: flat beyond h = 2. Identical responses teach nothing: their two gradients cancel."""
    pairs = [pair_of(3), pair_of(1), Pair(CHOSEN, CHOSEN)]
    assert preference("hinge")(batch(pairs))[1]["gradient/zero"].tolist() == [1.0, 0.0, 1.0]
    assert preference("sigmoid")(batch(pairs))[1]["gradient/zero"].tolist() == [0.0, 0.0, 1.0]
    with torch.no_grad():  # as in a validation
        assert preference("hinge")(batch(pairs))[1]["gradient/zero"].tolist() == [1.0, 0.0, 1.0]


def test_metrics_of_absent_responses_weigh_nothing() -> None:
    """Values and weights; beta 0.5. The first row has both responses, the second no rejected, the third no chosen one.

    A mean over rows divides by the sum of the weights: the mean chosen reward is (0.5 + 0.5) / 2, the mean margin 1 / 1.
    """
    of = batch([BY_HAND, Pair(CHOSEN, None), Pair(None, REJECTED)])
    _, metrics = preference("apo_zero")(of)
    assert metrics["rewards/chosen"].tolist() == [[0.5 * 1, 1], [0.5 * 1, 1], [0, 0]]
    assert metrics["rewards/rejected"].tolist() == [[0.5 * -1, 1], [0, 0], [0.5 * -1, 1]]
    assert metrics["rewards/margin"].tolist() == [[0.5 * (1 + 1), 1], [0.5 * 1, 0], [0.5 * 1, 0]]
    assert metrics["logps/chosen"][:, 1].tolist() == [1, 1, 0]
    assert metrics["kl"].tolist() == [(1 + 1) / 4, 1 / 2, 1 / 2]


def test_a_row_with_one_response_has_a_gradient() -> None:
    """Even though the gradient of the absent response is zero."""
    rows = [Pair(CHOSEN, None), Pair(None, REJECTED)]
    assert preference("apo_zero")(batch(rows))[1]["gradient/zero"].tolist() == [0.0, 0.0]


def test_ipo_is_flat_at_its_target_margin() -> None:
    """The target is h = 1 / (2 * 0.5) = 1."""
    metrics = preference("ipo")(batch([pair_of(1), pair_of(1.5)]))[1]
    assert metrics["gradient/zero"].tolist() == [1.0, 0.0]


def test_a_soft_label_has_a_gradient_where_the_hard_one_is_flat() -> None:
    """Hinge, h = 3: the opposite label has probability 0.2, and its hinge is not flat."""
    of = batch([Pair(**vars(pair_of(3)) | {"preference": 0.8})])
    of.chosen.logps.requires_grad_()
    losses, metrics = preference("hinge")(of)
    (gradient,) = torch.autograd.grad(losses.sum(), of.chosen.logps)
    assert gradient.item() == pytest.approx(0.2 * 0.5)
    assert metrics["gradient/zero"].tolist() == [0.0]


# The loss as a function of the logged margin m of the rewards.
OF_LOGGED_MARGIN: Mapping[LossName, Callable[[float, float, float], float]] = {
    "sigmoid": lambda m, beta, e: smoothed(m, e),
    "robust": lambda m, beta, e: naive.of_margin("robust", m / beta, beta, e),
    "exo": lambda m, beta, e: naive.of_margin("exo", m / beta, beta, e),
    "hinge": lambda m, beta, e: max(0.0, 1 - m),
    "ipo": lambda m, beta, e: (m / beta - 1 / (2 * beta)) ** 2,
    "discopop": lambda m, beta, e: naive.of_margin("discopop", m / beta, beta, e),
    "simpo": lambda m, beta, e: smoothed(m - 0.5, e),
    "cpo": lambda m, beta, e: smoothed(m, e),
    "orpo": lambda m, beta, e: -beta * naive.log_s(m),
}
LOGGED: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.1},
    {"reduction": "mean"},
    {"reference_free": True},
    {"reduction": "mean", "reference_free": True},
    {"f_divergence": "forward_kl"},
    {"f_divergence": "js"},
    {"f_divergence": "alpha", "f_alpha": 0.3},
    {"ld_alpha": 0.3},
    {"f_divergence": "js", "reduction": "mean"},
]


@pytest.mark.parametrize(
    ("loss", "options"), [(loss, o) for loss in OF_LOGGED_MARGIN for o in LOGGED if set(o) <= TAKES[loss]]
)
def test_the_loss_follows_from_the_logged_margin(loss: LossName, options: dict[str, Any]) -> None:
    """The logged rewards are the ones that are trained."""
    beta, of = 0.7, batch([Pair(p.chosen, p.rejected) for p in some_pairs(loss)])
    if "sft_weight" in TAKES[loss]:
        options = {**options, "sft_weight": 0.0}
    losses, metrics = preference(loss, beta, **options)(of)
    e = options.get("label_smoothing", 1e-3 if loss == "exo" else 0.0)
    expected = [OF_LOGGED_MARGIN[loss](m, beta, e) for m in metrics["rewards/margin"].tolist()]
    assert losses.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    torch.testing.assert_close(metrics["rewards/margin"], metrics["rewards/chosen"] - metrics["rewards/rejected"])


@pytest.mark.parametrize("options", [{}, {"reduction": "mean"}, {"reference_free": True}, {"ld_alpha": 0.3}])
@pytest.mark.parametrize("loss", ["sppo", "nca", "apo_zero", "apo_down", "bco"])
def test_the_loss_follows_from_the_logged_rewards(loss: LossName, options: dict[str, Any]) -> None:
    """For losses of the two rewards rather than of their margin."""
    beta, of = 0.7, batch([Pair(p.chosen, p.rejected) for p in some_pairs(loss)[:4]])
    losses, metrics = preference(loss, beta, **options)(of)
    w, r = metrics["rewards/chosen"].tolist(), metrics["rewards/rejected"].tolist()
    if loss == "bco":
        shift = (naive.mean(w) + naive.mean(r)) / 2
        expected = [-naive.log_s(a - shift) - naive.log_s(shift - b) for a, b in zip(w, r, strict=True)]
    elif loss == "apo_zero":
        expected = [1 - naive.s(a) + naive.s(b) for a, b in zip(w, r, strict=True)]
    else:
        expected = [naive.of_rewards(loss, a / beta, b / beta, beta) for a, b in zip(w, r, strict=True)]
    assert losses.tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
@given(beta=st.floats(1e-3, 1e2), pairs=st.lists(st.builds(Pair, RESPONSES, RESPONSES), min_size=1, max_size=4))
@settings(deadline=None, max_examples=30)
def test_a_policy_equal_to_its_reference_has_accuracy_one_half(beta: float, pairs: list[Pair]) -> None:
    """Its loss is ln 2, its rewards and KL are zero."""
    of = batch(pairs)
    chosen, rejected = (response._replace(ref_logps=response.logps) for response in (of.chosen, of.rejected))
    losses, metrics = preference("sigmoid", beta)(of._replace(chosen=chosen, rejected=rejected))
    assert losses.tolist() == pytest.approx([log(2)] * len(pairs))
    assert metrics["rewards/accuracy"].tolist() == [0.5] * len(pairs)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margin", "kl"):
        assert metrics[name].tolist() == [0.0] * len(pairs)


def test_the_kl_of_a_row_with_one_response_is_that_of_the_response() -> None:
    """The log-ratios are -2 and -1; a row with both has the mean of the two."""
    rows = [
        Pair(Response([-3], [-1]), None),
        Pair(None, Response([-3], [-2])),
        Pair(Response([-3], [-1]), Response([-3], [-2])),
    ]
    assert preference("bco")(batch(rows))[1]["kl"].tolist() == [2**2 / 2, 1**2 / 2, (2**2 + 1**2) / 4]


def test_absent_responses_do_not_touch_the_others() -> None:
    """For APO-zero and BCO, pairs cut in two have the same sum of losses; for KTO, the same mean."""
    pairs = [Pair(p.chosen, p.rejected, kl=0.4) for p in some_pairs("sigmoid")]
    halves = [Pair(p.chosen, None, kl=0.4) for p in pairs] + [Pair(None, p.rejected, kl=0.4) for p in pairs]
    for loss in ("apo_zero", "bco"):
        assert sum(losses_of(preference(loss), *halves)) == pytest.approx(sum(losses_of(preference(loss), *pairs)))
    assert naive.mean(losses_of(preference("kto"), *halves)) == pytest.approx(
        naive.mean(losses_of(preference("kto"), *pairs))
    )


# Which options and losses go together

EXAMPLES: Mapping[str, Any] = {
    "label_smoothing": 0.1,
    "reduction": "mean",
    "reference_free": True,
    "f_divergence": "js",
    "ld_alpha": 0.5,
    "wpo": True,
    "simpo_gamma": 0.1,
    "discopop_tau": 0.5,
    "sft_weight": 0.5,
    "desirable_weight": 2.0,
    "undesirable_weight": 2.0,
}


@pytest.mark.slow
@pytest.mark.parametrize("option", EXAMPLES)
@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_an_option_changes_the_loss_or_is_refused(loss: LossName, option: str) -> None:
    """No option is ignored."""
    if option not in TAKES[loss]:
        with pytest.raises(ParamsError, match=rf"loss_options\.{option}: loss '{loss}' does not use it"):
            preference(loss, **{option: EXAMPLES[option]})
        return
    pairs = some_pairs(loss)
    before, after = (losses_of(preference(loss, **options), *pairs) for options in ({}, {option: EXAMPLES[option]}))
    assert before != pytest.approx(after, rel=1e-3)


@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_f_alpha_requires_the_alpha_divergence(loss: LossName) -> None:
    for divergence in (None, "js"):
        with pytest.raises(ParamsError, match=r"loss_options\.f_(alpha|divergence): "):
            preference(loss, f_alpha=0.3, f_divergence=divergence)
    if loss in OF_MARGIN:
        before, after = (
            losses_of(preference(loss, 0.1, f_divergence="alpha", f_alpha=alpha), BY_HAND) for alpha in (None, 0.3)
        )
        assert before != pytest.approx(after, rel=1e-4)


@pytest.mark.parametrize(
    ("loss", "options", "key"),
    [
        ("sigmoid", {"f_alpha": 0.3}, "f_alpha"),
        ("sigmoid", {"f_alpha": 0.3, "f_divergence": "js"}, "f_alpha"),
        ("sigmoid", {"reference_free": True, "f_divergence": "js"}, "f_divergence"),
        ("sigmoid", {"reduction": "mean", "ld_alpha": 0.5}, "ld_alpha"),
        ({"sigmoid": 1.0, "nca": 1.0}, {"f_divergence": "js"}, "f_divergence"),
        ({"sigmoid": 1.0, "kto": 1.0}, {"reduction": "mean"}, "reduction"),
        ({"sigmoid": 1.0, "kto": 1.0}, {"reference_free": True}, "reference_free"),
        ({"sigmoid": 1.0, "kto": 1.0}, {"ld_alpha": 0.5}, "ld_alpha"),
        ({"sigmoid": 1.0, "bco": 1.0}, {"wpo": True}, "wpo"),
        ({"sigmoid": 1.0, "aot": 1.0}, {"wpo": True}, "wpo"),
        ({"sigmoid": 1.0, "sft": 1.0}, {"sft_weight": 1.0}, "sft_weight"),
        ({"hinge": 1.0, "sft": 1.0}, {"label_smoothing": 0.1}, "label_smoothing"),
        ("exo", {"label_smoothing": 0.0}, "label_smoothing"),
    ],
)
def test_options_that_another_makes_useless_are_refused(loss: Any, options: dict[str, Any], key: str) -> None:
    """A regulariser without a reference, lengths divided out twice, a sum with a loss that cannot use the option."""
    with pytest.raises(ParamsError, match=rf"^params\.yaml: loss_options\.{key}: "):
        preference(loss, **options)


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ({"sigmoid": 1.0, "sft": 1.0}, {"f_divergence": "js", "wpo": True, "label_smoothing": 0.1}),
        ({"sigmoid": 1.0, "hinge": 1.0}, {"label_smoothing": 0.1, "f_divergence": "alpha", "f_alpha": 0.3}),
        ({"discopop": 1.0, "sppo": 1.0}, {"discopop_tau": 0.1, "reduction": "mean"}),
        ({"kto": 1.0, "bco": 1.0}, {"desirable_weight": 2.0}),
        ("sigmoid", {"reduction": "sum", "ld_alpha": 0.5}),
        ("sigmoid", {"reference_free": False, "f_divergence": "js"}),
        ("sigmoid", {"label_smoothing": 0.0}),
    ],
)
def test_options_that_a_loss_of_the_sum_uses_are_accepted(loss: Any, options: dict[str, Any]) -> None:
    preference(loss, **options)


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations(LOSS_NAMES, 2)))
def test_losses_can_be_summed_if_they_take_the_same_input(a: LossName, b: LossName) -> None:
    """Otherwise the logged rewards and their accuracy would belong to one of the two losses only."""
    if any(a in family and b in family for family in FAMILIES):
        preference({a: 0.5, b: 2.0})
    else:
        with pytest.raises(ParamsError, match=r"^params\.yaml: loss: .*must take the same input"):
            preference({a: 0.5, b: 2.0})


@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_sft_can_be_added_to_losses_without_a_cross_entropy(loss: LossName) -> None:
    if loss in ("cpo", "orpo"):
        with pytest.raises(ParamsError, match=r"^params\.yaml: loss: .*sft_weight"):
            preference({loss: 1.0, "sft": 1.0})
        return
    pairs = [p for p in some_pairs(loss) if p.chosen and p.rejected]
    with_sft = losses_of(preference({"sft": 0.5, loss: 2.0}), *pairs)
    assert with_sft == pytest.approx(naive.losses({"sft": 0.5, loss: 2.0}, pairs, 0.5, {}))
    for reward in ("rewards/chosen", "rewards/rejected"):  # not of the cross-entropy, although it comes first
        rewards, expected = (preference(x)(batch(pairs))[1][reward] for x in ({"sft": 0.5, loss: 2.0}, loss))
        torch.testing.assert_close(rewards, expected)


@pytest.mark.parametrize("loss", ["sft", {"sft": 2.0}])
def test_sft_alone_learns_no_preference(loss: Any) -> None:
    with pytest.raises(ParamsError, match=r"^params\.yaml: loss: 'sft' learns no preference"):
        preference(loss)


@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_only_unpaired_losses_accept_rows_with_one_response(loss: LossName) -> None:
    ones = torch.ones(3)
    pref = preference(loss)
    pref.check_rows(ones, True, "pairs.parquet")
    if loss in UNPAIRED:
        pref.check_rows(ones, False, "pairs.parquet")
        return
    with pytest.raises(
        DataError, match=rf"^pairs\.parquet: .*'{loss}' needs both; set loss to one of apo_zero, kto, bco"
    ):
        pref.check_rows(ones, False, "pairs.parquet")


@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_losses_that_sort_rows_cannot_weigh_them(loss: LossName) -> None:
    """A loss at a position of the sorted batch belongs to no single row, so no row's label can weigh it."""
    pref, soft = preference({"sigmoid": 1.0, loss: 1.0} if loss in SORTING else loss), double(1.0, 0.7)
    if loss in SORTING:
        with pytest.raises(DataError, match=rf"^pairs\.parquet: column preference: loss '{loss}' sorts rows"):
            pref.check_rows(soft, True, "pairs.parquet")
    else:
        pref.check_rows(soft, True, "pairs.parquet")


@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_a_loss_declares_its_inputs_and_whether_it_is_joint(loss: LossName) -> None:
    """Inputs that cost a forward pass are computed only if they are used; a joint loss is taken over all rows of a step."""
    assert preference(loss).uses_kl == (loss == "kto")
    assert not preference(loss).uses_confidence
    if "wpo" in TAKES[loss]:
        assert preference(loss, wpo=True).uses_confidence
        assert not preference(loss, wpo=False).uses_confidence
    pairs = [Pair(p.chosen, p.rejected, kl=i) for i, p in enumerate(some_pairs("sigmoid"))]
    together = losses_of(preference(loss), *pairs)
    alone = [losses_of(preference(loss), pair)[0] for pair in pairs]
    assert preference(loss).jointly == (together != pytest.approx(alone))


# Large differences


@pytest.mark.parametrize(
    ("loss", "options"),
    [(loss, {}) for loss in LOSS_NAMES]
    + [(loss, {"f_divergence": d}) for loss in OF_MARGIN for d in ("forward_kl", "js", "alpha")],
)
def test_large_differences_stay_finite(loss: LossName, options: dict[str, Any]) -> None:
    """A million nats in float32: losses, metrics and gradients."""
    check_finite(preference(loss, 0.1, **options))
    check_finite(preference(loss, 10.0, **options))


def test_large_differences_stay_finite_with_a_small_f_alpha() -> None:
    check_finite(preference("ipo", 0.1, f_divergence="alpha", f_alpha=0.01))


def check_finite(pref: Preference) -> None:
    chosen, rejected = (torch.tensor(t).mul(1e6).requires_grad_() for t in ([-1.0, 0, 0, -1], [0.0, -1, 0, -1]))
    of = PairBatch(
        pair_batch.Response(chosen, rejected.detach(), torch.full((4,), 10.0)),
        pair_batch.Response(rejected, chosen.detach(), torch.full((4,), 20.0)),
        kl=torch.zeros(4),
    )
    losses, metrics = pref(of)
    gradients = torch.autograd.grad(losses.sum(), [chosen, rejected])
    for values in (losses, *gradients, *metrics.values()):
        assert bool(values.isfinite().all())


# The first step


def start(pref: Preference, chosen: Tensor, rejected: Tensor) -> dict[str, float]:
    """The trainer's mean metrics of a first step with these log-ratios; all reference log-probabilities are -9."""
    ref_logps, tokens = torch.full_like(chosen, -9), torch.ones_like(chosen)
    responses = [pair_batch.Response(logratio - 9, ref_logps, tokens) for logratio in (chosen, rejected)]
    losses, metrics = pref(PairBatch(*responses, kl=chosen))
    return {name: values.mean().item() for name, values in {"loss": losses, **metrics}.items()}


@pytest.mark.parametrize("tolerance", START_TOLERANCE.values(), ids=START_TOLERANCE.keys())
@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_the_start_check_passes_if_the_policy_equals_its_reference(loss: LossName, tolerance: float) -> None:
    pref = preference(loss)
    check = StartCheck(tolerance)
    for off in (0.0, 0.9 * tolerance, -0.9 * tolerance):
        check.before_update(0, start(pref, double(off, -off), double(-off, off)))


@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_the_start_check_stops_a_policy_that_differs_from_its_reference(loss: LossName) -> None:
    """In one response only, in both alike, with margins or rewards that cancel in the mean, and with a NaN."""
    pref = preference(loss)
    tolerance = START_TOLERANCE["float32"]
    off = 1.1 * tolerance
    for chosen, rejected in [
        ((2 * off, 2 * off), (0, 0)),
        ((0, 0), (-2 * off, -2 * off)),
        ((off, off), (off, off)),
        ((off, -off), (-off, off)),
        ((5, -5), (0, 0)),
        ((nan, 0), (0, 0)),
    ]:
        with pytest.raises(NumericError, match=r"^step 0: the policy differs from its reference: .*ref_logps"):
            StartCheck(tolerance).before_update(0, start(pref, double(*chosen), double(*rejected)))


def test_the_start_check_measures_the_root_mean_square() -> None:
    """Log-ratios 3, 0, 0 and 4: sqrt((9 + 16) / 4) = 2.5 nats."""
    pref = preference("sigmoid")
    metrics = start(pref, double(3, 0), double(0, 4))
    StartCheck(2.501).before_update(0, metrics)
    StartCheck(2.499).before_update(1, metrics)  # only the first step is checked
    with pytest.raises(NumericError, match=r"off by 2\.5 nats \(tolerance 2\.499\)"):
        StartCheck(2.499).before_update(0, metrics)


# Optima: a policy that is a table of logits, one per response


def optimum(pref: Preference, pairs: list[tuple[int, int, float]], reference: Tensor) -> Tensor:
    """The log-ratios (responses,) of the policy with the lowest loss on pairs (chosen, rejected, preference)."""
    logits = reference.clone().requires_grad_()
    frozen = reference.log_softmax(0)
    w, r = (torch.tensor([pair[i] for pair in pairs]) for i in (0, 1))
    ones = torch.ones(len(pairs), dtype=torch.float64)
    optimizer = torch.optim.LBFGS(
        [logits], lr=1, max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logps = logits.log_softmax(0)
        responses = [pair_batch.Response(logps[y], frozen[y], ones) for y in (w, r)]
        losses, _ = pref(PairBatch(*responses, preference=double(*(pair[2] for pair in pairs))))
        loss = losses.sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return (logits.log_softmax(0) - frozen).detach()


REFERENCE = double(0.3, -1.0, 0.7)


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_dpo_learns_the_preference(beta: float, p: float) -> None:
    """-p log s(z) - (1 - p) log s(-z) is smallest where s(z) = p: h = logit(p) / beta."""
    ratios = optimum(preference("sigmoid", beta), [(0, 1, p)], REFERENCE)
    assert (ratios[0] - ratios[1]).item() == pytest.approx(log(p / (1 - p)) / beta, abs=1e-4)


@pytest.mark.parametrize("e", [0.05, 0.3])
@pytest.mark.parametrize("loss", ["sigmoid", "exo"])
def test_smoothed_losses_learn_the_smoothed_label(loss: LossName, e: float) -> None:
    """cDPO and EXO are KL divergences between policy and label, in opposite directions: h = logit(1 - e) / beta for both."""
    ratios = optimum(preference(loss, 0.5, label_smoothing=e), [(0, 1, 1.0)], REFERENCE)
    assert (ratios[0] - ratios[1]).item() == pytest.approx(log((1 - e) / e) / 0.5, abs=1e-4)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_ipo_stops_at_a_margin(beta: float) -> None:
    """h = 1 / (2 beta) for a certain label; (2 p - 1) times that for a label of probability p."""
    for p in (1.0, 0.8):
        ratios = optimum(preference("ipo", beta), [(0, 1, p)], REFERENCE)
        assert (ratios[0] - ratios[1]).item() == pytest.approx((2 * p - 1) / (2 * beta), abs=1e-5)


def test_f_dpo_learns_the_preference_in_its_own_rewards() -> None:
    """f'(u_w) - f'(u_l) = logit(p) / beta, with f' = 1 - 1/u for the forward KL."""
    ratios = optimum(preference("sigmoid", 0.5, f_divergence="forward_kl"), [(0, 1, 0.7)], REFERENCE)
    derivatives = 1 - (-ratios).exp()
    assert (derivatives[0] - derivatives[1]).item() == pytest.approx(log(0.7 / 0.3) / 0.5, abs=1e-4)


def test_dpo_finds_the_policy_that_is_optimal_for_its_reward() -> None:
    """DPO, eq. 4: with preferences s(r_i - r_j) over all pairs, pi is proportional to pi_ref exp(r / beta)."""
    reward, beta = double(1.0, 0.0, -0.5), 0.5
    pairs = [(i, j, naive.s((reward[i] - reward[j]).item())) for i, j in itertools.combinations(range(3), 2)]
    ratios = optimum(preference("sigmoid", beta), pairs, REFERENCE)
    best = (REFERENCE + reward / beta).log_softmax(0) - REFERENCE.log_softmax(0)
    torch.testing.assert_close(ratios, best, atol=1e-5, rtol=0)
