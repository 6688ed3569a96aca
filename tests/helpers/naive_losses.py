"""Naive twins of `prefdag.dpo.losses` and `prefdag.dpo.preference`: the papers' formulas in plain Python, pair by pair.

They start from the log-probabilities of single tokens; an absent response is None.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from prefdag.config.constraints import Constraint
from prefdag.config.loss import LossName
from prefdag.config.loss_options import LossOptions
from prefdag.dpo import pair_batch
from prefdag.dpo.pair_batch import PairBatch
from prefdag.dpo.preference import Preference

ALL_OF_MARGIN = {"reduction", "reference_free", "f_divergence", "f_alpha", "ld_alpha", "wpo"}
ALL_OF_REWARDS = {"reduction", "reference_free", "ld_alpha"}

# The options that each loss takes, according to the comments of params.yaml and the papers:
# label smoothing   losses that are a cross-entropy of the labels, in their own order or sorted
# reduction, reference_free, ld_alpha   losses of log-ratios, except KTO, which compares them with the KL of full responses
# ld_alpha          CPO as well, which sums over tokens; SimPO and ORPO have already divided out the lengths
# f_divergence      losses that depend only on the difference of the two rewards
# wpo               losses of one pair with a chosen and a rejected response
TAKES: Mapping[LossName, set[str]] = {
    "sigmoid": {"label_smoothing", *ALL_OF_MARGIN},
    "robust": {"label_smoothing", *ALL_OF_MARGIN},
    "exo": {"label_smoothing", *ALL_OF_MARGIN},
    "hinge": ALL_OF_MARGIN,
    "ipo": ALL_OF_MARGIN,
    "discopop": {"discopop_tau", *ALL_OF_MARGIN},
    "sppo": {"wpo", *ALL_OF_REWARDS},
    "nca": {"wpo", *ALL_OF_REWARDS},
    "apo_down": {"wpo", *ALL_OF_REWARDS},
    "apo_zero": ALL_OF_REWARDS,
    "bco": ALL_OF_REWARDS,
    "kto": {"desirable_weight", "undesirable_weight"},
    "aot": {"label_smoothing", *ALL_OF_REWARDS},
    "aot_unpaired": {"label_smoothing", *ALL_OF_REWARDS},
    "cpo": {"label_smoothing", "sft_weight", "ld_alpha", "wpo"},
    "simpo": {"label_smoothing", "simpo_gamma", "wpo"},
    "orpo": {"sft_weight", "wpo"},
}


@dataclass(frozen=True)
class Response:
    """The log-probabilities of a response's tokens in nats, and WPO's confidence in it."""

    policy: Sequence[float]
    reference: Sequence[float]
    confidence: float = 0.0


@dataclass(frozen=True)
class Pair:
    """A row; one of its responses may be absent."""

    chosen: Response | None
    rejected: Response | None
    preference: float = 1.0
    kl: float = 0.0


def options(**values: Any) -> LossOptions:
    """These options; the others are null."""
    return LossOptions(**{field.name: values.get(field.name) for field in fields(LossOptions)})


def preference(
    loss: LossName | Mapping[LossName, float],
    beta: float = 0.5,
    constraints: Mapping[Any, Constraint] | None = None,
    **values: Any,
) -> Preference:
    """The preference under test, with `values` as its options."""
    return Preference(loss, beta, options(**values), constraints or {})


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


ABSENT = Response([], [])


def batch(pairs: Sequence[Pair]) -> PairBatch:
    """These rows as the trainer passes them to the loss, in float64. An absent response has log-probability 0 and one token."""
    shared = [min(len(r.policy) for r in (pair.chosen, pair.rejected) if r) for pair in pairs]
    everywhere = all(pair.chosen and pair.rejected for pair in pairs)

    def responses(side: Sequence[Response | None]) -> pair_batch.Response:
        present = [r or ABSENT for r in side]
        return pair_batch.Response(
            logps=double(*(sum(r.policy) for r in present)),
            ref_logps=double(*(sum(r.reference) for r in present)),
            tokens=double(*(len(r.policy) or 1 for r in present)),
            shared_logps=double(*(sum(r.policy[:n]) for r, n in zip(present, shared, strict=True))),
            ref_shared_logps=double(*(sum(r.reference[:n]) for r, n in zip(present, shared, strict=True))),
            confidence=double(*(r.confidence for r in present)),
            present=None if everywhere else double(*(r is not None for r in side)),  # as in the stages
        )

    return PairBatch(
        responses([pair.chosen for pair in pairs]),
        responses([pair.rejected for pair in pairs]),
        kl=double(*(pair.kl for pair in pairs)),
        preference=double(*(pair.preference for pair in pairs)),
    )


def log_s(z: float) -> float:
    return -math.log1p(math.exp(-z)) if z > 0 else z - math.log1p(math.exp(z))


def s(z: float) -> float:
    return math.exp(log_s(z))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def logp(pair: Pair, side: str, which: str, o: Mapping[str, Any]) -> float:
    """A response's log-probability, with LD-DPO's weight for tokens beyond the length of the other response."""
    response: Response = getattr(pair, side)
    shared = min(len(r.policy) for r in (pair.chosen, pair.rejected) if r)
    weights = [1.0 if t < shared else o.get("ld_alpha", 1.0) for t in range(len(response.policy))]
    total = sum(w * lp for w, lp in zip(weights, getattr(response, which), strict=True))
    return total / len(response.policy) if o.get("reduction") == "mean" else total


def mean_logp(response: Response | None) -> float:
    return mean(response.policy) if response else 0.0


def log_ratio(pair: Pair, side: str, o: Mapping[str, Any]) -> float:
    """log pi / pi_ref, its f-divergence form, or log pi without a reference; 0 for an absent response."""
    if getattr(pair, side) is None:
        return 0.0
    ratio = logp(pair, side, "policy", o)
    if not o.get("reference_free"):
        ratio -= logp(pair, side, "reference", o)
    u = math.exp(ratio)
    match o.get("f_divergence"):
        case "forward_kl":
            return 1 - 1 / u
        case "js":
            return math.log(2 * u / (1 + u))
        case "alpha":
            alpha = o.get("f_alpha", 0.5)
            return (1 - u**-alpha) / alpha
    return ratio


def smoothed(z: float, e: float) -> float:
    return -(1 - e) * log_s(z) - e * log_s(-z)


def of_margin(name: str, h: float, beta: float, e: float, tau: float = 0.05) -> float:
    """The losses that depend on the difference h of two scores."""
    z = beta * h
    match name:
        case "sigmoid":
            return smoothed(z, e)
        case "robust":
            return ((1 - e) * -log_s(z) - e * -log_s(-z)) / (1 - 2 * e)
        case "exo":  # KL(policy's preference || smoothed label)
            return s(z) * (log_s(z) - math.log(1 - e)) + s(-z) * (log_s(-z) - math.log(e))
        case "hinge":
            return max(0.0, 1 - z)
        case "ipo":
            return (h - 1 / (2 * beta)) ** 2
        case "discopop":
            return -s(-z / tau) * log_s(z) + math.exp(
                log_s(z / tau) - z
            )  # one exponential for the product: exp(-z) alone may overflow
    raise ValueError(name)


def of_rewards(name: str, w: float, r: float, beta: float) -> float:
    """The losses that depend on both scores: w of the chosen response, r of the rejected one."""
    match name:
        case "sppo":
            return (w - 1 / (2 * beta)) ** 2 + (r + 1 / (2 * beta)) ** 2
        case "nca":
            return -log_s(beta * w) - log_s(-beta * w) / 2 - log_s(-beta * r) / 2
        case "apo_down":
            return s(beta * w) + (1 - s(beta * w - beta * r))
    raise ValueError(name)


def hard_losses(
    name: str, pairs: Sequence[Pair], beta: float, o: Mapping[str, Any], at: Sequence[Pair]
) -> Sequence[float]:
    """The losses for certain labels. `at`: the rows over which the shifts of KTO and BCO are taken."""
    e = o.get("label_smoothing", 1e-3 if name == "exo" else 0.0)
    if name in ("sigmoid", "robust", "exo", "hinge", "ipo", "discopop"):
        margins = [log_ratio(p, "chosen", o) - log_ratio(p, "rejected", o) for p in pairs]
        return [of_margin(name, h, beta, e, o.get("discopop_tau", 0.05)) for h in margins]
    if name in ("sppo", "nca", "apo_down"):
        return [of_rewards(name, log_ratio(p, "chosen", o), log_ratio(p, "rejected", o), beta) for p in pairs]
    rewards = [[beta * log_ratio(p, side, o) for side in ("chosen", "rejected")] for p in pairs]
    match name:
        case "apo_zero":
            return [
                (1 - s(w) if p.chosen else 0) + (s(r) if p.rejected else 0)
                for p, (w, r) in zip(pairs, rewards, strict=True)
            ]
        case "kto":
            z0 = beta * max(0.0, mean([p.kl for p in at]))
            values = [
                [o.get("desirable_weight", 1.0) * (1 - s(w - z0))] * bool(p.chosen)
                + [o.get("undesirable_weight", 1.0) * (1 - s(z0 - r))] * bool(p.rejected)
                for p, (w, r) in zip(pairs, rewards, strict=True)
            ]
            return [mean(v) for v in values]
        case "bco":
            sides = [[beta * log_ratio(p, side, o) for p in at if getattr(p, side)] for side in ("chosen", "rejected")]
            shift = mean([mean(rewards) for rewards in sides if rewards])
            return [
                (-log_s(w - shift) if p.chosen else 0) + (-log_s(-(r - shift)) if p.rejected else 0)
                for p, (w, r) in zip(pairs, rewards, strict=True)
            ]
        case "aot":
            policy = sorted(logp(p, "chosen", "policy", o) - logp(p, "rejected", "policy", o) for p in pairs)
            reference = [logp(p, "chosen", "reference", o) - logp(p, "rejected", "reference", o) for p in pairs]
            reference = sorted(0.0 if o.get("reference_free") else m for m in reference)
            return [smoothed(beta * (a - b), e) for a, b in zip(policy, reference, strict=True)]
        case "aot_unpaired":
            good_ratios, bad_ratios = (sorted(log_ratio(p, side, o) for p in pairs) for side in ("chosen", "rejected"))
            return [smoothed(beta * (a - b), e) for a, b in zip(good_ratios, bad_ratios, strict=True)]
        case "cpo":
            margins = [logp(p, "chosen", "policy", o) - logp(p, "rejected", "policy", o) for p in pairs]
            weight = o.get("sft_weight", 1.0)
            return [smoothed(beta * h, e) - weight * mean_logp(p.chosen) for h, p in zip(margins, pairs, strict=True)]
        case "simpo":
            gamma = o.get("simpo_gamma", 0.5)
            return [smoothed(beta * (mean_logp(p.chosen) - mean_logp(p.rejected)) - gamma, e) for p in pairs]
        case "orpo":
            odds = [
                [math.exp(mean_logp(r)) / (1 - math.exp(mean_logp(r))) for r in (p.chosen, p.rejected)] for p in pairs
            ]
            weight = o.get("sft_weight", 1.0)
            return [
                -weight * mean_logp(p.chosen) - beta * log_s(math.log(a / b))
                for (a, b), p in zip(odds, pairs, strict=True)
            ]
        case "sft":
            return [-mean_logp(p.chosen) for p in pairs]
    raise ValueError(name)


def swapped(pair: Pair) -> Pair:
    return replace(pair, chosen=pair.rejected, rejected=pair.chosen)


def losses(
    terms: Mapping[LossName, float],
    pairs: Sequence[Pair],
    beta: float,
    o: Mapping[str, Any],
    at: Sequence[Pair] | None = None,
) -> list[float]:
    """One loss per row: the expected weighted sum over the labels, times WPO's weight."""
    at = pairs if at is None else at
    total = [0.0] * len(pairs)
    for name, weight in terms.items():
        hard = hard_losses(name, pairs, beta, o, at)
        flipped = hard_losses(name, [swapped(p) for p in pairs], beta, o, [swapped(p) for p in at])
        for i, p in enumerate(pairs):
            total[i] += weight * (
                hard[i] if p.preference == 1 else p.preference * hard[i] + (1 - p.preference) * flipped[i]
            )
    if o.get("wpo"):
        for i, p in enumerate(pairs):
            total[i] *= math.exp(p.chosen.confidence) * math.exp(p.rejected.confidence)  # type: ignore[union-attr]
    return total
