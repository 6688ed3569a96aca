"""Which prompts make pairs (active selection). Imports no torch."""

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from prefdag.rounds.votes import Judged


def at_random(prompts: Sequence[str], budget: int, seed: int) -> set[str]:
    """`budget` of the prompts, or all of them if they are fewer."""
    if budget >= len(prompts):
        return set(prompts)
    return set(np.random.default_rng(seed).choice(prompts, budget, replace=False).tolist())


def highest(prompts: Sequence[str], values: Sequence[float], budget: int, seed: int) -> set[str]:
    """The `budget` prompts with the highest values, in random order among equal ones; NaN comes last."""
    order = np.random.default_rng(seed).permutation(len(prompts))
    ranked = order[np.argsort(-np.asarray(values)[order], kind="stable")]
    return {prompts[place] for place in ranked[:budget]}


def uncertainty(rewards: Sequence[float], texts: Sequence[str]) -> float:
    """How unsure a policy is of the answers to a prompt: minus the mean absolute margin between two different ones.

    NaN if all answers are equal, which can make no pair.
    """
    margins = [abs(rewards[a] - rewards[b]) for a, b in combinations(range(len(texts)), 2) if texts[a] != texts[b]]
    return -float(np.mean(margins)) if margins else np.nan


def disagreement(judges: Sequence["Judged"], rows: Sequence[int], texts: Sequence[str]) -> float:
    """How far judges disagree on the answers to a prompt: the mean absolute difference between the votes of two judges on two
    different answers, from 0 to 1. NaN if no two judges vote on any.

    Args:
        rows: of the answers.
        texts: theirs.
    """
    differences = [
        abs(one.votes[rows[a], rows[b]].value - other.votes[rows[a], rows[b]].value)
        for a, b in combinations(range(len(rows)), 2)
        if texts[a] != texts[b]
        for one, other in combinations(judges, 2)
    ]
    known = [each for each in differences if not np.isnan(each)]
    return float(np.mean(known)) if known else np.nan
