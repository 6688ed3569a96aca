"""Statistics of generated answers: length, repetition, refusals, and how policy and reference differ in them."""

import re
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from prefdag.stats import intervals

MODELS = ("reference", "policy", "control")  # the control only if there is one
DECODINGS = ("greedy", "sampled")
NGRAM = 4  # tokens: the n-grams of `repetition`
DISTINCT = 2  # tokens: the n-grams of `distinct`
MEASURES = ("tokens", "ended", "repetition", "refused")  # columns whose means are reported

# How a refusal opens: optionally an apology or "As an AI", then "I cannot" or "I will not". arXiv:2307.15043 also goes by
# openings. "As an AI, I can ..." and "I'm sorry, but the two differ" are no refusals here. For what this misses, see
# docs/answers.md.
PREFACE = (
    r"(?:(?:i'm|i am|we're|we are) (?:\w+ )?(?:sorry|afraid)|sorry|(?:i|we) apologi[sz]e|(?:my )?apologies|unfortunately"
    r"|as an? [^.!?:]{1,60}?)[,;]? (?:but |however,? |that )*"
)
DECLINES = (
    r"(?:i|we) (?:(?:can't|cannot|can not)(?! (?:wait|help but|believe|imagine|thank|stress|emphasi))|won't|will not"
    r"|must decline|have to decline|refuse to|(?:don't|do not) (?:feel comfortable|have the (?:ability|capability)))"
    r"|(?:i'm|i am|we're|we are) (?:not (?:able|allowed|permitted|comfortable)|unable)"
)
REFUSAL = re.compile(rf"\W*(?:{PREFACE}){{0,3}}(?:{DECLINES})\b")


def refuses(text: str) -> bool:
    """Whether an answer opens like a refusal, in English. Quotes, stars and other marks before the first letter are ignored."""
    plain = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return REFUSAL.match(" ".join(plain.split())) is not None


def ngrams(ids: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    """All n-grams, in order."""
    return list(zip(*(ids[i:] for i in range(n)), strict=False))


def repetition(ids: Sequence[Hashable]) -> float:
    """seq-rep-4: the share of 4-grams that repeat an earlier one in the same answer (arXiv:1908.04319, section 6.1).

    0 if there are fewer than four tokens.
    """
    grams = ngrams(ids, NGRAM)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(answers: Iterable[Sequence[Hashable]]) -> float | None:
    """distinct-2: the share of different bigrams among all bigrams of all answers (arXiv:1510.03055). None without bigrams."""
    bigrams = [gram for ids in answers for gram in ngrams(ids, DISTINCT)]
    return len(set(bigrams)) / len(bigrams) if bigrams else None


def rows(
    prompts: pd.DataFrame, texts: Sequence[str], answers: Sequence[Sequence[int]], stop_ids: Sequence[int]
) -> pd.DataFrame:
    """One row per answer: the columns of `prompts`, `text`, `ids` (including the stop id, if any), and `MEASURES` (without it).

    Args:
        stop_ids: the tokens at which an answer ends.
    """
    without_end = [list(ids[:-1] if ids[-1] in stop_ids else ids) for ids in answers]
    return prompts.assign(
        text=list(texts),
        ids=pd.Series(list(map(list, answers)), index=prompts.index),
        tokens=[len(ids) for ids in without_end],
        ended=[ids[-1] in stop_ids for ids in answers],
        repetition=[repetition(ids) for ids in without_end],
        refused=[refuses(text) for text in texts],
    )


def statistics(table: pd.DataFrame) -> dict[str, Any]:
    """Means of all measures by decoding and model, and the differences policy minus reference, with 95% intervals.

    Intervals of shares are Wilson's, of their differences Tango's. Those of lengths and repetition are Student's t, of their
    differences a paired bootstrap over prompts. `distinct` has no interval: it falls with the number of answers, and a
    bootstrap would repeat answers.
    """
    results: dict[str, Any] = {"n_prompts": int(table["id"].nunique())}
    for decoding, part in table.groupby("decoding"):
        by_model = {model: part[part["model"] == model].sort_values("id") for model in MODELS}
        by_model = {model: rows for model, rows in by_model.items() if len(rows)}
        assert by_model["policy"]["id"].tolist() == by_model["reference"]["id"].tolist()
        results[str(decoding)] = {
            **{model: _means(answers) for model, answers in by_model.items()},
            "differences": {
                measure: _difference(by_model["policy"][measure], by_model["reference"][measure])
                for measure in MEASURES
            },
            "same": float((by_model["policy"]["text"].to_numpy() == by_model["reference"]["text"].to_numpy()).mean()),
        }
    return results


def _means(answers: pd.DataFrame) -> dict[str, float]:
    means: dict[str, float] = {}
    for measure in MEASURES:
        values = answers[measure].astype(float).tolist()
        low, high = (intervals.mean if measure == "tokens" else intervals.share)(values)
        means |= {measure: float(np.mean(values)), f"{measure}_low": low, f"{measure}_high": high}
    variety = distinct(ids_without_end(answers))
    return means if variety is None else means | {"distinct": variety}


def ids_without_end(answers: pd.DataFrame) -> list[list[int]]:
    """The token ids of each answer without its stop id."""
    return [list(ids[:count]) for ids, count in zip(answers["ids"], answers["tokens"], strict=True)]


def _difference(policy: pd.Series, reference: pd.Series) -> dict[str, float]:
    """The mean difference, policy minus reference, over prompts."""
    one, other = policy.to_numpy(), reference.to_numpy()
    if one.dtype == bool:
        low, high = intervals.paired_difference(int((one & ~other).sum()), int((other & ~one).sum()), len(one))
    else:
        low, high = intervals.ratio_difference(one.astype(float), other.astype(float), np.ones(len(one)))
    value = float(one.astype(float).mean() - other.astype(float).mean())
    return {"difference": value, "difference_low": low, "difference_high": high}
