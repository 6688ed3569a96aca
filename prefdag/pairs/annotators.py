"""Several annotators: what they said of the same responses, row by row, as one preference a pair."""

import json

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit, log_expit

# Of a vote, given to either side of each comparison: without it a response that never lost would be infinitely good.
PRIOR = 0.01


def agreed(pairs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows that name an annotator as one row a pair; the others as they are.

    Of each prompt the responses get strengths (see `bradley_terry`), and a pair the preference sigmoid(difference), with
    the stronger response as chosen. An annotator who judged a pair twice has one vote, the mean. The row stands where the
    first judgement stood.

    Args:
        pairs: what `schema.read_pairs` returned.

    Returns:
        The pairs; and of each row that went into another one `source`, `into` (that row's source) and `judgements`, how
        many annotators judged the pair.
    """
    judged = pairs[pairs["annotator"].notna() & pairs["chosen"].notna() & pairs["rejected"].notna()]
    judged = judged[judged["preference"].between(0, 1) & (judged["chosen"] != judged["rejected"])]
    kept, merged = {}, []
    for _, group in judged.groupby(judged["prompt"].map(json.dumps), sort=False):
        names = list(dict.fromkeys([*group["chosen"], *group["rejected"]]))
        number = {name: i for i, name in enumerate(names)}
        said: dict[tuple[int, int], dict[str, list[float]]] = {}  # by pair, lower number first, and annotator
        rows: dict[tuple[int, int], list[int]] = {}
        for row, chosen, rejected, preference, annotator in group[
            ["chosen", "rejected", "preference", "annotator"]
        ].itertuples():
            a, b = number[chosen], number[rejected]
            pair = (min(a, b), max(a, b))
            said.setdefault(pair, {}).setdefault(annotator, []).append(preference if a < b else 1 - preference)
            rows.setdefault(pair, []).append(row)
        wins = np.zeros((len(names), len(names)))
        for (a, b), votes in said.items():
            wins[a, b] = sum(float(np.mean(each)) for each in votes.values())
            wins[b, a] = len(votes) - wins[a, b]
        preferences = bradley_terry(wins)
        for (a, b), (first, *others) in rows.items():
            better, worse = (a, b) if preferences[a, b] >= 0.5 else (b, a)
            kept[first] = (names[better], names[worse], float(preferences[better, worse]))
            merged += [(pairs["source"][row], pairs["source"][first], len(said[a, b])) for row in others]
    together = pairs.drop(index=judged.index.difference(list(kept)))
    if kept:
        together.loc[list(kept), ["chosen", "rejected", "preference"]] = list(kept.values())
    return together, pd.DataFrame(merged, columns=["source", "into", "judgements"])


def bradley_terry(wins: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The probability that one response is preferred to another, (K, K), by the Bradley-Terry model (1952).

    It is sigmoid(s_i - s_j), with the strengths s that make the votes most likely, each comparison with `PRIOR` of a vote
    for either side beside them. Of two responses, which are one comparison, it is the share of the votes.

    Args:
        wins: (K, K), how many votes i got against j.
    """
    if len(wins) == 2:
        shares = wins / wins.sum()
        return np.where(np.eye(2) > 0, 0.5, shares)
    votes = wins + PRIOR * ((wins + wins.T) > 0)

    def loss(strengths: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        """Minus the log-likelihood, and its gradient."""
        apart = strengths[:, None] - strengths
        pull = votes * expit(-apart)
        return -float((votes * log_expit(apart)).sum()), pull.sum(axis=0) - pull.sum(axis=1)

    strengths = minimize(loss, np.zeros(len(wins)), jac=True, method="BFGS", options={"gtol": 1e-8}).x
    return np.asarray(expit(strengths[:, None] - strengths))
