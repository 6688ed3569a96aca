"""What models answer, as rows and as figures: how long, how repetitive, how often a refusal; and by how much they differ."""

import re
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from prefdag.stats import intervals

MODELS = ("reference", "policy")
DECODINGS = ("greedy", "sampled")
NGRAM = 4  # tokens, of the repetition within an answer
DISTINCT = 2  # tokens, of the variety over all answers
MEASURES = ("tokens", "ended", "repetition", "refused")  # columns of the rows whose means are reported

# How a refusal opens: an apology, a name or nothing, then that one cannot or will not. Openings are what arXiv:2307.15043 goes
# by, too; here "As an AI, I can ..." and "I'm sorry, but the two differ" are none. What this misses: docs/answers.md.
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
    """Whether an answer opens as refusals do, in English; quotes, stars and other marks before the first letter aside."""
    plain = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return REFUSAL.match(" ".join(plain.split())) is not None


def ngrams(ids: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    """All runs of n tokens, in order."""
    return list(zip(*(ids[i:] for i in range(n)), strict=False))


def repetition(ids: Sequence[Hashable]) -> float:
    """seq-rep-4: the share of runs of four tokens that stood before in the same answer (arXiv:1908.04319, section 6.1).

    0 where there are fewer than four tokens.
    """
    runs = ngrams(ids, NGRAM)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def distinct(answers: Iterable[Sequence[Hashable]]) -> float | None:
    """distinct-2: different runs of two tokens in all answers over all such runs (arXiv:1510.03055); None without any."""
    runs = [run for ids in answers for run in ngrams(ids, DISTINCT)]
    return len(set(runs)) / len(runs) if runs else None


def rows(prompts: pd.DataFrame, texts: Sequence[str], answers: Sequence[Sequence[int]], eos_id: int) -> pd.DataFrame:
    """A row an answer: `prompts` and `text`, `ids` (with the EOS, where it ended), `tokens` (without), and the measures."""
    words = [list(ids[:-1] if ids[-1] == eos_id else ids) for ids in answers]
    return prompts.assign(
        text=list(texts),
        ids=pd.Series(list(map(list, answers)), index=prompts.index),
        tokens=[len(ids) for ids in words],
        ended=[ids[-1] == eos_id for ids in answers],
        repetition=[repetition(ids) for ids in words],
        refused=[refuses(text) for text in texts],
    )


def statistics(table: pd.DataFrame) -> dict[str, Any]:
    """Of each decoding and model the mean of every measure, and policy minus reference, all with 95% intervals.

    Shares: Wilson, and of differences Tango; lengths and repetition: Student's t, and of differences a paired bootstrap over
    prompts. `distinct` has no interval: it falls with the number of answers, and drawing rows again would repeat some.
    """
    found: dict[str, Any] = {"n_prompts": int(table["id"].nunique())}
    for decoding, part in table.groupby("decoding"):
        by_model = {model: part[part["model"] == model].sort_values("id") for model in MODELS}
        assert by_model["policy"]["id"].tolist() == by_model["reference"]["id"].tolist()
        found[str(decoding)] = {
            **{model: _means(answers) for model, answers in by_model.items()},
            "differences": {
                measure: _difference(by_model["policy"][measure], by_model["reference"][measure])
                for measure in MEASURES
            },
            "same": float((by_model["policy"]["text"].to_numpy() == by_model["reference"]["text"].to_numpy()).mean()),
        }
    return found


def _means(answers: pd.DataFrame) -> dict[str, float]:
    found: dict[str, float] = {}
    for measure in MEASURES:
        values = answers[measure].astype(float).tolist()
        low, high = (intervals.mean if measure == "tokens" else intervals.share)(values)
        found |= {measure: float(np.mean(values)), f"{measure}_low": low, f"{measure}_high": high}
    variety = distinct(words_of(answers))
    return found if variety is None else found | {"distinct": variety}


def words_of(answers: pd.DataFrame) -> list[list[int]]:
    """The ids of each answer without its EOS."""
    return [list(ids[:count]) for ids, count in zip(answers["ids"], answers["tokens"], strict=True)]


def _difference(policy: pd.Series, reference: pd.Series) -> dict[str, float]:
    """The mean of policy minus reference over prompts."""
    one, other = policy.to_numpy(), reference.to_numpy()
    if one.dtype == bool:
        low, high = intervals.paired_difference(int((one & ~other).sum()), int((other & ~one).sum()), len(one))
    else:
        low, high = intervals.ratio_difference(one.astype(float), other.astype(float), np.ones(len(one)))
    value = float(one.astype(float).mean() - other.astype(float).mean())
    return {"difference": value, "difference_low": low, "difference_high": high}
