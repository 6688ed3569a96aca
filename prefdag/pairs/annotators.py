"""Merge the judgements of several annotators, one per row, into one preference per pair."""

import json

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit, log_expit

# Votes added to both sides of each comparison. Without them, a response that never lost would get infinite strength.
PRIOR = 0.01


def merge_annotators(pairs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Merge the rows that name an annotator into one row per pair, and keep the others.

    The responses to each prompt get strengths (see `bradley_terry`). The preference of a pair is sigmoid(difference), with
    the stronger response as chosen. An annotator who judged a pair twice has one vote, the mean. The merged row takes the
    place of the first judgement, without scores. Responses with different tool calls or reasoning are different.

    Args:
        pairs: from `schema.read_pairs`.

    Returns:
        The pairs; and for each row that was merged into another, its `source`, `into` (the source of the other row) and
        `judgements`, the number of annotators who judged the pair.
    """
    judged = pairs[pairs["annotator"].notna() & pairs["chosen"].notna() & pairs["rejected"].notna()]
    sides = {side: _responses(judged, side) for side in ("chosen", "rejected")}
    judged = judged.assign(**sides)[judged["preference"].between(0, 1) & (sides["chosen"] != sides["rejected"])]
    kept, merged = {}, []
    asked = judged["prompt"].map(json.dumps) + judged["tools"].fillna("")
    for _, group in judged.groupby(asked, sort=False):
        responses = list(dict.fromkeys([*group["chosen"], *group["rejected"]]))
        number = {response: i for i, response in enumerate(responses)}
        votes: dict[tuple[int, int], dict[str, list[float]]] = {}  # by pair (lower number first) and annotator
        rows: dict[tuple[int, int], list[int]] = {}
        for row, chosen, rejected, preference, annotator in group[
            ["chosen", "rejected", "preference", "annotator"]
        ].itertuples():
            a, b = number[chosen], number[rejected]
            pair = (min(a, b), max(a, b))
            votes.setdefault(pair, {}).setdefault(annotator, []).append(preference if a < b else 1 - preference)
            rows.setdefault(pair, []).append(row)
        wins = np.zeros((len(responses), len(responses)))
        for (a, b), by_annotator in votes.items():
            wins[a, b] = sum(float(np.mean(own)) for own in by_annotator.values())
            wins[b, a] = len(by_annotator) - wins[a, b]
        preferences = bradley_terry(wins)
        for (a, b), (first, *others) in rows.items():
            better, worse = (a, b) if preferences[a, b] >= 0.5 else (b, a)
            kept[first] = (*responses[better], *responses[worse], float(preferences[better, worse]), np.nan, np.nan)
            merged += [(pairs["source"][row], pairs["source"][first], len(votes[a, b])) for row in others]
    together = pairs.drop(index=judged.index.difference(list(kept)))
    if kept:
        texts = ["chosen", "chosen_extra", "rejected", "rejected_extra"]
        changed = pd.DataFrame(
            list(kept.values()), list(kept), [*texts, "preference", "score_chosen", "score_rejected"]
        )
        for column in changed:
            together.loc[changed.index, column] = changed[column].astype(together[column].dtype)
    return together, pd.DataFrame(merged, columns=["source", "into", "judgements"])


def _responses(pairs: pd.DataFrame, side: str) -> pd.Series:
    """The text of each response with its tool calls and reasoning, None without any."""
    extras = [extra if isinstance(extra, str) else None for extra in pairs[f"{side}_extra"]]
    return pd.Series(list(zip(pairs[side], extras, strict=True)), pairs.index, dtype="object")


def bradley_terry(wins: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The probability that response i is preferred to j, (K, K), by the Bradley-Terry model (1952).

    It is sigmoid(s_i - s_j), with maximum-likelihood strengths s; `PRIOR` votes are added to both sides of each comparison.
    For two responses, which are a single comparison, it is the share of the votes.

    Args:
        wins: (K, K), the number of votes for i against j.
    """
    if len(wins) == 2:
        shares = wins / wins.sum()
        return np.where(np.eye(2) > 0, 0.5, shares)
    votes = wins + PRIOR * ((wins + wins.T) > 0)

    def loss(strengths: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        """The negative log-likelihood and its gradient."""
        apart = strengths[:, None] - strengths
        pull = votes * expit(-apart)
        return -float((votes * log_expit(apart)).sum()), pull.sum(axis=0) - pull.sum(axis=1)

    strengths = minimize(loss, np.zeros(len(wins)), jac=True, method="BFGS", options={"gtol": 1e-8}).x
    return np.asarray(expit(strengths[:, None] - strengths))
