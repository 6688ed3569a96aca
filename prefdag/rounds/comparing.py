"""The policy of a round beside the one before it, on validation prompts. Estimates have 95% intervals, `_low` and `_high`."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from prefdag.stats import intervals
from prefdag.text.evaluation.judge import KEYS, OUTCOMES, win_rates
from prefdag.text.evaluation.metrics import compare_heldout
from prefdag.text.generation.answers import DISTINCT, ids_without_end, ngrams
from prefdag.text.scoring.logps import Pair

if TYPE_CHECKING:
    from prefdag.text.model import ReferenceAndPolicy

MEANS = ("tokens", "repetition", "ended", "refused")


def kl_to_reference(models: "ReferenceAndPolicy", answers: pd.DataFrame, max_tokens: int) -> dict[str, float]:
    """KL(policy || reference), nats per response, estimated on the policy's own answers, with its interval.

    The sum over an answer's tokens of the KL between the two next-token distributions. Its mean is the KL of whole answers
    (cut as they are) if they were sampled with temperature 1 and top_p 1, and close to it otherwise.
    """
    pairs = [Pair(list(row["prompt_ids"]), list(row["ids"]), None) for row in answers.to_dict("records")]
    kls = [float(each.sum()) for each in compare_heldout(models, pairs, max_tokens).kls]
    low, high = intervals.mean(kls)
    return _estimate("kl_to_reference", float(np.mean(kls)), max(0.0, low), high)


def means(answers: pd.DataFrame) -> dict[str, float]:
    """Means over answers, and distinct-2."""
    found: dict[str, float] = {}
    for name in MEANS:
        values = answers[name].astype(float).tolist()
        interval = (intervals.mean if name == "tokens" else intervals.share)(values)
        found |= _estimate(name, float(np.mean(values)), *interval)
    return found | distinct(ids_without_end(answers))


def distinct(answers: Sequence[Sequence[int]]) -> dict[str, float]:
    """distinct-2, the share of different bigrams among all bigrams of all answers (arXiv:1510.03055); empty without bigrams.

    The interval is the jackknife's over answers (Efron and Tibshirani 1993, chapter 11), with Student's t.
    """
    if (found := _with_and_without_each(answers)) is None:
        return {}
    low, high = _jackknife(*found)
    return _estimate("distinct", found[0], max(0.0, low), min(1.0, high))


def distinct_change(before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]) -> dict[str, float]:
    """How distinct-2 changed at equal lengths: of both answers to a prompt, the longer one is cut to the shorter one's length.

    Without the cut, longer answers alone would lower it. The jackknife leaves out both answers to a prompt.
    """
    lengths = [min(map(len, each)) for each in zip(before, after, strict=True)]
    cut = ([ids[:n] for ids, n in zip(each, lengths, strict=True)] for each in (before, after))
    one, other = map(_with_and_without_each, cut)
    if one is None or other is None:
        return {}
    change = other[0] - one[0]
    low, high = _jackknife(change, other[1] - one[1])
    return _estimate("distinct_change", change, max(-1.0, low), min(1.0, high))


def _with_and_without_each(answers: Sequence[Sequence[int]]) -> tuple[float, np.ndarray] | None:
    """distinct-2 of all answers, and without each one, (answers,), NaN if no bigram is left; None without bigrams."""
    own = [Counter(ngrams(ids, DISTINCT)) for ids in answers]
    every = sum(own, Counter[Any]())
    if not every:
        return None
    different = [len(every) - sum(every[gram] == count for gram, count in each.items()) for each in own]
    left = [every.total() - each.total() for each in own]
    without = np.divide(different, left, out=np.full(len(own), np.nan), where=np.array(left) > 0)
    return len(every) / every.total(), without


def _jackknife(value: float, without: np.ndarray) -> tuple[float, float]:
    """The interval of a statistic from its values without each row, (rows,). Unbounded if one row has all that counts."""
    n = len(without)
    if n == 1 or np.isnan(without).any():
        return -math.inf, math.inf
    error = math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
    reach = float(stats.t.ppf((1 + intervals.LEVEL) / 2, n - 1)) * error
    return value - reach, value + reach


def merged_verdicts(verdicts: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Verdicts by name, with those of "judge.0", "judge.1", ... merged into "judge": the majority, or a tie."""
    several = [name for name in verdicts if name.startswith("judge.")]
    if not several:
        return dict(verdicts)
    points = np.array([verdicts[name]["outcome"].map(OUTCOMES) for name in several], dtype=float)  # unread: NaN
    above = np.nansum(points - 0.5, axis=0)
    unread = np.isnan(points).all(axis=0)
    outcome = np.select([unread, above > 0, above < 0], ["unread", "win", "loss"], "tie")
    together = verdicts[several[0]][KEYS].assign(outcome=outcome)
    return {"judge": together} | {name: each for name, each in verdicts.items() if name not in several}


def rates(contests: pd.DataFrame, verdicts: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Win rates of the policy after the round, by judge; of two judges, also how they differ on the contests both can read:
    `agreement`, the share with the same outcome, and `gap`, the first one's win rate minus the other's.
    """
    found: dict[str, Any] = {
        name: win_rates(contests, each, f"rounds.{name}")["sampled"] for name, each in verdicts.items()
    }
    if len(verdicts) < 2:
        return found
    one, other = (np.array([OUTCOMES.get(name, np.nan) for name in each["outcome"]]) for each in verdicts.values())
    read = ~(np.isnan(one) | np.isnan(other))
    if read.any():
        same = (one == other)[read].tolist()
        gap = (one - other)[read].tolist()
        found["agreement"] = {
            "n": len(same),
            **_estimate("agreement", float(np.mean(same)), *intervals.share(same)),
            **_estimate("gap", float(np.mean(gap)), *intervals.mean(gap)),
        }
    return found


def _estimate(name: str, value: float, low: float, high: float) -> dict[str, float]:
    return {name: value, f"{name}_low": low, f"{name}_high": high}
