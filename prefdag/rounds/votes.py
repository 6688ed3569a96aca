"""What judges say of several answers to a prompt. Imports no torch."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

Couple = tuple[int, int]  # two answers to a prompt, by their rows, the lower one first


class Vote(NamedTuple):
    """A judge's choice between two answers."""

    value: float  # 1 for the first answer, 0 for the second one, 1/2 for a tie; NaN: the judge cannot tell
    decided_by: str = ""  # the check of a program that decided; empty if several did together


class Judged(NamedTuple):
    """What a judge says of all answers of a round."""

    scores: np.ndarray  # (answers,), comparable among the answers to a prompt; NaN: none
    votes: Mapping[Couple, Vote]


def vote(first: float, second: float, decided_by: str = "") -> Vote:
    """The vote of a judge that gives answers these scores."""
    return Vote(float(np.sign(first - second) + 1) / 2, decided_by)


def by_scores(scores: np.ndarray, couples: Iterable[Couple]) -> Judged:
    """Of a judge that scores each answer."""
    return Judged(scores, {(one, other): vote(scores[one], scores[other]) for one, other in couples})


def by_votes(n: int, votes: Mapping[Couple, Vote]) -> Judged:
    """Of a judge that only compares: the score of each of `n` answers is the mean of its votes; NaN if it has none."""
    points: list[list[float]] = [[] for _ in range(n)]
    for (one, other), (value, _) in votes.items():
        if not np.isnan(value):
            points[one].append(value)
            points[other].append(1 - value)
    return Judged(np.array([np.mean(each) if each else np.nan for each in points]), votes)
