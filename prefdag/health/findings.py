"""The verdict on a finished DPO run: named findings, from its two tables only.

Each finding is a function of columns of history.csv (one row per optimiser step, taken before its update) and validation.csv
(one row per validation, the first at step 0, the last after the last update). It returns a sentence with the numbers, or None.
A finding whose columns a run lacks is listed as not checked. docs/health.md says what to do about each.

Imports no torch, because reports and metrics read the verdict too.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from pandas import DataFrame, Series

from prefdag.health.verdict import Finding, Verdict
from prefdag.stats import intervals

if TYPE_CHECKING:
    from prefdag.config.health import Health, TrainingFinding

MOST = 0.5  # share of pairs: if more than half have no gradient, further steps train on the few others
FALLEN = 0.01  # nats per response, 1% of its likelihood: a smaller drop is negligible, and may be rounding
EXPLODED = 100.0  # times the median: after clipping, one batch alone determines the direction of such a step


def examine(history: DataFrame, validation: DataFrame, config: "Health", *, start_tolerance: float | None) -> Verdict:
    """Check for every finding whose columns exist.

    Args:
        history: as in history.csv, at least one row.
        validation: as in validation.csv, at least one row.
        start_tolerance: nats of log-ratio by which policy and reference may differ at step 0; None if the policy does not
            start at its reference (a new prefix).
    """
    train, val = history.get, validation.get
    kl, drifts = val("kl"), validation.filter(like="drift/")
    lengths = [of(name) for of in (train, val) for name in ("rewards/longer", "rewards/margin", "lengths/longer")]
    if (
        lengths[0] is not None and not lengths[0].any()
    ):  # every pair has responses of equal length: classes, or all truncated to one length
        lengths = [None]
    checks: dict[TrainingFinding, tuple[Callable[..., str | None], tuple[Any, ...]]] = {
        "not_at_reference": (not_at_reference, (val("logratios/square"), start_tolerance)),
        "zero_gradient": (zero_gradient, (train("gradient/zero"), val("gradient/zero"))),
        "likelihood_displacement": (likelihood_displacement, (val("logps/chosen"), val("logps/rejected"))),
        "length_exploitation": (length_exploitation, tuple(lengths)),
        "reward_saturation": (reward_saturation, (val("rewards/saturated"),)),
        "kl_out_of_budget": (kl_out_of_budget, (kl, config.kl_budget)),
        "drift": (drift, (None if drifts.empty else drifts,)),
        "divergence": (divergence, (train("loss"), val("loss"), train("grad_norm"))),
    }
    checked = {name: check(*of) for name, (check, of) in checks.items() if not any(column is None for column in of)}
    return Verdict(
        [Finding(name, sentence) for name, sentence in checked.items() if sentence],
        list(checked),
        [name for name in checks if name not in checked],
    )


def not_at_reference(squares: Series, tolerance: float) -> str | None:
    """At step 0, the root mean square of the validation pairs' log-ratios exceeds `tolerance`.

    `squares` is the mean squared log-ratio, nats^2. (`StartCheck` has checked the first training batch.)
    """
    off = math.sqrt(squares.iloc[0])
    if off <= tolerance:
        return None
    return f"at step 0, the validation pairs' log-ratios are off by {off:.3g} nats; the tolerance is {tolerance:g}"


def zero_gradient(training: Series, validation: Series) -> str | None:
    """At step 0 any pair has a gradient of exactly zero, or at the end most validation pairs have.

    At step 0 nothing has been learned yet, so the loss sees two equal responses. Later, a hinge ignores pairs beyond its
    margin, and a sigmoid underflows.
    """
    start, end = max(training.iloc[0], validation.iloc[0]), validation.iloc[-1]
    if start > 0:
        return f"at step 0, before any training, {_percent(start)} of the pairs have a gradient of exactly zero"
    if end > MOST:
        return f"at the end, {_percent(end)} of the validation pairs have a gradient of exactly zero"
    return None


def likelihood_displacement(chosen: Series, rejected: Series) -> str | None:
    """The mean log-probabilities of chosen and rejected validation responses both fell, each by more than `FALLEN`.

    Both then end with a negative reward, and their probability mass went to responses that nobody judged: DPOP,
    arXiv:2402.13228; likelihood displacement, arXiv:2410.08847. Uses log-probabilities, because rewards are relative to a
    reference that may be updated, or that the loss may not have.
    """
    if any(side.iloc[0] - side.iloc[-1] <= FALLEN for side in (chosen, rejected)):
        return None
    return (
        f"the mean log-probability of the chosen validation responses fell from {chosen.iloc[0]:.2f} to "
        f"{chosen.iloc[-1]:.2f} nats, and that of the rejected ones from {rejected.iloc[0]:.2f} to {rejected.iloc[-1]:.2f} nats"
    )


def length_exploitation(
    longer: Series, margin: Series, lengths: Series, val_longer: Series, val_margin: Series, val_lengths: Series
) -> str | None:
    """The policy rewards length more than preference (arXiv:2403.19159).

    Let m be a pair's margin and s = sign(|y_w| - |y_l|). A policy indifferent to length has E[m s] = E[s] E[m]; the excess
    over that is Cov(m, s). If no two lengths are equal, E[m] - E[m s] = 2 P(s < 0) E[m | s < 0]: it is negative exactly if the
    pairs whose shorter response was chosen have a negative mean margin. (Pairs of equal length that are ranked right increase
    it, and make the finding rarer.)

    The finding requires that, at the last validation, E[m s] exceeds both E[s] E[m] and E[m]. To rule out chance with few
    pairs, the 95% interval of the excess over the last half of the training steps must also lie above zero.
    """
    last = slice(len(longer) // 2, None)
    low, _ = intervals.mean(_covariances(longer[last], margin[last], lengths[last]))
    gained, preferred = val_longer.iloc[-1], val_margin.iloc[-1]
    explained = val_lengths.iloc[-1] * preferred
    if gained <= max(explained, preferred) or low <= 0 or len(longer[last]) == 1:
        return None
    return (
        f"at the end, longer validation responses have {gained:+.3f} more reward than shorter ones; the preferences explain "
        f"{explained:+.3f} of this; chosen responses have {preferred:+.3f} more reward than rejected ones"
    )


def _covariances(longer: Series, margin: Series, lengths: Series) -> list[float]:
    """Terms (steps,) whose mean is the excess over all pairs, mean(longer) - mean(lengths) mean(margin).

    They are linear in each step's means, so that their spread is that of the excess (the delta method).
    """
    terms = longer - lengths.mean() * margin - margin.mean() * (lengths - lengths.mean())
    return [float(term) for term in terms]


def reward_saturation(saturated: Series) -> str | None:
    """At the end, the sigmoid of the margin is above 0.99 for most validation pairs, ranked right or wrong.

    With certain labels, DPO has no optimum at a finite margin; IPO has one: arXiv:2310.12036, section 4.2.
    """
    if saturated.iloc[-1] <= MOST:
        return None
    return f"at the end, the sigmoid of the margin is above 0.99 for {_percent(saturated.iloc[-1])} of the validation pairs"


def kl_out_of_budget(kl: Series, budget: float) -> str | None:
    """At the end, the KL to the reference exceeds `budget`, nats per response: a risk of over-optimisation with any loss
    (arXiv:2406.02900)."""
    if kl.iloc[-1] <= budget:
        return None
    return f"at the end, the KL to the reference is {kl.iloc[-1]:.3g} nats per response; the budget is {budget:g}"


def drift(drifts: DataFrame) -> str | None:
    """Frozen tensors changed: a value in the columns drift/... is not exactly 0."""
    changed = {str(name): float(column.abs().max()) for name, column in drifts.items() if (column != 0).any()}
    if not changed:
        return None
    return f"frozen tensors changed: {', '.join(f'{name} is {value:g}' for name, value in changed.items())}, not 0"


def divergence(loss: Series, val_loss: Series, grad_norm: Series) -> str | None:
    """A loss or a gradient norm is not finite, the validation loss ends above its start, or a gradient norm explodes.

    Above: by more than the standard deviation of the training loss over the last half of the steps. Explodes: exceeds
    `EXPLODED` times the median of all steps (arXiv:1211.5063).
    """
    names = ("loss", "validation loss", "gradient norm")
    bad = [name for name, of in zip(names, (loss, val_loss, grad_norm), strict=True) if not np.isfinite(of).all()]
    if bad:
        return f"not finite: {', '.join(bad)}"
    sentences = []
    start, end, spread = val_loss.iloc[0], val_loss.iloc[-1], loss[len(loss) // 2 :].std(ddof=0)
    if end - start > spread:
        sentences.append(
            f"the validation loss ended at {end:.3f}, above its start of {start:.3f} by more than the {spread:.3f} "
            "by which the training loss varies from step to step"
        )
    highest, median = grad_norm.max(), grad_norm.median()
    if highest > EXPLODED * median > 0:
        sentences.append(f"the gradient norm reached {highest:.3g}; its median is {median:.3g}")
    return "; ".join(sentences) or None


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
