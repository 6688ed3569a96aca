"""Measures of a whole set of preference pairs: shares that should be small, over all rows and per origin.

`MEASURES` is the only list of them. The gate's expectations and the report's table come from it, and tests compare it with
the names in config/validate_pairs.py, the comments in params.yaml and the table in docs/data.md.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from prefdag.pairs.ngrams import normalised, words
from prefdag.pairs.turns import typed_text
from prefdag.stats import intervals

if TYPE_CHECKING:
    from prefdag.config.validate_pairs import MeasureName

RUN = 4  # words
SAMPLE = 2_000  # responses whose runs are counted; a limit, because the share grows with the number of responses
ORIGINS = 10  # only the largest origins are measured
ALL = "all rows"

COLUMNS = ["source", "measure", "share", "low", "high", "n"]
NO_LETTERS = bytes(i for i in range(128) if not chr(i).isalpha())


class Share(NamedTuple):
    """A share of `n` things, with its 95% interval. The interval of an exact count is the share itself."""

    share: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class ShareMeasure:
    """A share, and what people read about it. The docstring of the function is the definition that docs/data.md shows."""

    share: Callable[[pd.DataFrame], Share | None]  # of readable rows; None if there is nothing to count
    title: str  # in the report and in params.yaml
    remedy: str  # what a large share means, and what to do
    across_origins: bool = False  # compares the origins, so it is measured over all rows only


def longer_preferred(pairs: pd.DataFrame) -> Share | None:
    """Pairs that prefer the longer response (in characters), of the pairs whose responses differ in length."""
    both = _both_responses(pairs)
    lengths = both["chosen"].str.len() - both["rejected"].str.len()
    signs = (lengths * (both["preference"] - 0.5))[
        lambda product: product != 0
    ]  # positive: the longer one is preferred
    n, longer = len(signs), int((signs > 0).sum())
    return Share(longer / n, *intervals.proportion(longer, n), n) if n else None


def disagreement(pairs: pd.DataFrame) -> Share | None:
    """Mean probability that the rejected response is the better one: min(p, 1 - p), where p is the preference."""
    values = [min(p, 1 - p) for p in _both_responses(pairs)["preference"]]
    return Share(sum(values) / len(values), *intervals.mean(values), len(values)) if values else None


def repeated_prompts(pairs: pd.DataFrame) -> Share | None:
    """Rows whose whole prompt, ignoring letter case and white space, is also the prompt of an earlier row."""
    prompts = ["\n".join(normalised(typed_text(turn)) for turn in prompt) for prompt in pairs["prompt"]]
    return _count(len(prompts) - len(set(prompts)), len(prompts))


def repeated_runs(pairs: pd.DataFrame) -> Share | None:
    """Repeated runs of four words in the first 2,000 responses: 1 - distinct-4 (arXiv:1510.03055, section 5.1)."""
    seen: set[str] = set()
    n = 0
    for text in pairs["chosen"].fillna(pairs["rejected"]).head(SAMPLE):
        own = words(text)
        for i in range(len(own) - RUN + 1):
            seen.add(" ".join(own[i : i + RUN]))
            n += 1
    return _count(n - len(seen), n)


def other_scripts(pairs: pd.DataFrame) -> Share | None:
    """Rows written mostly in another script than most rows: a rough measure of how mixed the languages are."""
    return _count(int(scripts(pairs).value_counts().iloc[1:].sum()), len(pairs))


def largest_origin(pairs: pd.DataFrame) -> Share | None:
    """Rows of the largest origin, if there are several. An origin is a row's `source`, or else its file."""
    sizes = pairs["origin"].value_counts()
    return _count(int(sizes.iloc[0]), len(pairs)) if len(sizes) > 1 else None


MEASURES: Mapping["MeasureName", ShareMeasure] = {
    "longer_preferred": ShareMeasure(
        longer_preferred,
        title="pairs that prefer the longer response",
        remedy="DPO will learn to write longer; balance the pairs or set loss_options.ld_alpha",
    ),
    "disagreement": ShareMeasure(
        disagreement,
        title="mean probability that the rejected response is the better one",
        remedy="the labels carry little information; check how they were collected",
    ),
    "repeated_prompts": ShareMeasure(
        repeated_prompts,
        title="prompts that repeat an earlier row's",
        remedy="there are few distinct prompts; add others",
    ),
    "repeated_runs": ShareMeasure(
        repeated_runs,
        title="repeated runs of four words in responses",
        remedy="the responses reuse the same phrases; add more varied ones",
    ),
    "other_scripts": ShareMeasure(
        other_scripts,
        title="rows in another script than most",
        remedy="the rows mix several scripts; check that these are the languages you want",
    ),
    "largest_origin": ShareMeasure(
        largest_origin,
        title="rows of the largest origin",
        remedy="nearly all rows have the same origin; balance the origins",
        across_origins=True,
    ),
}


def measure_shares(pairs: pd.DataFrame) -> pd.DataFrame:
    """Every measure of all rows and, if there are several origins, of each of the largest.

    Args:
        pairs: readable rows of `schema.read_pairs`.

    Returns:
        Columns `source` (`ALL` or an origin), `measure`, `share`, `low`, `high` and `n`; see `Share`. Measures without
        anything to count are left out. Measures across origins come last.
    """
    groups = {ALL: pairs}
    sizes = pairs["origin"].value_counts()
    if len(sizes) > 1:
        largest = sorted(sizes.index[:ORIGINS])
        groups |= {str(origin): pairs[pairs["origin"] == origin] for origin in largest if origin != ALL}
    within = [
        (source, name, measure.share(group))
        for source, group in groups.items()
        for name, measure in MEASURES.items()
        if not measure.across_origins
    ]
    across = [(ALL, name, measure.share(pairs)) for name, measure in MEASURES.items() if measure.across_origins]
    rows = [(source, name, *share) for source, name, share in within + across if share is not None]
    return pd.DataFrame(rows, columns=COLUMNS)


def row_texts(pairs: pd.DataFrame) -> "pd.Series[str]":
    """All text of each row, its turns and its responses, one per line; null for an unreadable row.

    Tool calls and reasoning in the turns are part of it.
    """
    texts = [
        "\n".join(
            [
                *map(typed_text, prompt),
                *(side for side in sides if isinstance(side, str)),
            ]
        )
        if isinstance(prompt, list)
        else None
        for prompt, *sides in pairs[["prompt", "chosen", "rejected"]].itertuples(index=False)
    ]
    return pd.Series(texts, pairs.index, "str")


def scripts(pairs: pd.DataFrame) -> "pd.Series[str]":
    """The script of most letters in each readable row: LATIN, CYRILLIC, CJK, ...; "none" if a row has no letters."""
    script_of: dict[str, str | None] = {}
    return pd.Series([_script(text, script_of) for text in row_texts(pairs)], pairs.index, "str")


def _script(text: str, script_of: dict[str, str | None]) -> str:
    """The script of most letters of a text. `script_of` caches the script per character, None if it is not a letter."""
    plain = text.encode("ascii", "ignore")
    latin, others = len(plain.translate(None, NO_LETTERS)), len(text) - len(plain)
    if latin > others or not others:  # most letters, whatever the others are
        return "LATIN" if latin else "none"
    letters: Counter[str] = Counter()
    for letter, count in Counter(text).items():
        if letter not in script_of:
            # A letter's Unicode name starts with its script: CYRILLIC SMALL LETTER A, CJK UNIFIED IDEOGRAPH-4E00.
            script_of[letter] = unicodedata.name(letter, "none").split()[0] if letter.isalpha() else None
        if (script := script_of[letter]) is not None:
            letters[script] += count
    return max(letters, key=lambda script: (letters[script], script)) if letters else "none"


def _both_responses(pairs: pd.DataFrame) -> pd.DataFrame:
    """The rows that have two responses."""
    return pairs[pairs["chosen"].notna() & pairs["rejected"].notna()]


def _count(part: int, n: int) -> Share | None:
    """An exact share, not an estimate."""
    return Share(part / n, part / n, part / n, n) if n else None
