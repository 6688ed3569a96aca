"""What judges say of several answers to a prompt. Imports no torch."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse.csgraph import connected_components

from prefdag.pairs.annotators import bradley_terry

DIGITS = 6  # of merged preferences, whose strengths are found numerically: a tie stays one

Couple = tuple[int, int]  # two answers to a prompt, by their rows, the lower one first


class Vote(NamedTuple):
    """A judge's choice between two answers."""

    value: float  # 1 for the first answer, 0 for the second one, 1/2 for a tie; NaN: the judge cannot tell
    decided_by: str = ""  # the check or principle that decided; empty if several did together


class Judged(NamedTuple):
    """What a judge says of all answers of a round."""

    scores: np.ndarray  # (answers,), comparable among the answers to a prompt; NaN: none
    votes: Mapping[Couple, Vote]


def rows_by_prompt(answers: pd.DataFrame) -> list[list[int]]:
    """The row numbers of the answers to each prompt."""
    places = pd.Series(range(len(answers)), index=answers["id"])
    return [rows.tolist() for _, rows in places.groupby(level=0, sort=False)]


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


def merged(each: Sequence[Judged], prompts: Iterable[Sequence[int]]) -> Judged:
    """Several judges as one, as `annotators.merge_annotators` merges people: one vote of each, Bradley-Terry strengths.

    A merged vote is the probability that the first answer is preferred. The score of an answer is the mean of that over the
    prompt's other answers. Answers without a vote, or with none that links them to most others, have no score.

    Args:
        prompts: the rows of the answers to each prompt.
    """
    votes: dict[Couple, Vote] = {}
    scores = np.full(len(each[0].scores), np.nan)
    for rows in prompts:
        wins = np.zeros((len(rows), len(rows)))
        for a, b in combinations(range(len(rows)), 2):
            cast = np.array([judged.votes[rows[a], rows[b]].value for judged in each])
            wins[a, b], wins[b, a] = np.nansum(cast), np.nansum(1 - cast)
        known = _linked(wins)
        if len(known) < 2:
            continue
        preferences = bradley_terry(wins[np.ix_(known, known)]).round(DIGITS)
        own = [rows[place] for place in known]
        scores[own] = ((preferences.sum(axis=1) - preferences.diagonal()) / (len(own) - 1)).round(DIGITS)
        for a, b in combinations(range(len(own)), 2):
            votes[own[a], own[b]] = Vote(float(preferences[a, b]))
    return Judged(scores, votes)


def _linked(wins: np.ndarray) -> list[int]:
    """The answers that votes link, as a chain of comparisons; the largest such group, since two groups cannot be compared."""
    _, group = connected_components(wins + wins.T, directed=False)
    return np.flatnonzero(group == np.bincount(group).argmax()).tolist()


def only(judged: Judged, rows: Sequence[int]) -> Judged:
    """What a judge says of some of the answers, in the order of `rows`, which are all answers to some prompts."""
    places = {row: place for place, row in enumerate(rows)}
    votes = {(places[a], places[b]): vote for (a, b), vote in judged.votes.items() if a in places}
    return Judged(judged.scores[list(rows)], votes)
