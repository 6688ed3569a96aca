"""What a set of preference pairs is like as a whole: shares that had better be small, of all rows and of each origin."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from prefdag.pairs.ngrams import normalised, words
from prefdag.stats import intervals

if TYPE_CHECKING:
    from prefdag.pairs.eval_sets import EvalRow

RUN = 4  # words
SAMPLE = 2_000  # responses whose runs are counted: the share grows with their number, so that it must be bounded
ORIGINS = 10  # of the origins, the largest so many are measured
ALL = "all rows"

COLUMNS = ["source", "measure", "share", "low", "high", "n"]


def measures(pairs: pd.DataFrame) -> pd.DataFrame:
    """Every measure of all rows, then of each of the largest origins where there are several.

    Args:
        pairs: readable rows of `schema.read_pairs`.

    Returns:
        Columns `source` (whose rows), `measure`, `share`, its 95% interval `low` and `high`, which are the share itself
        where it is a count and no sample's, and `n`, of how many. Measures that have nothing to count are left out:

        longer_preferred   of the pairs whose responses differ in length (characters): the preferred one is the longer
        disagreement       mean of min(p, 1 - p) over the pairs, p the preference
        repeated_prompts   of the rows: their whole prompt, `normalised`, stood in an earlier row
        repeated_runs      of the runs of four words in the first responses: said before in another place
        other_scripts      of the rows: not written, for the most part, in the script of most rows
        largest_origin     of all rows: from the origin that gave most
    """
    groups = {ALL: pairs}
    sizes = pairs["origin"].value_counts()
    if len(sizes) > 1:
        largest = sorted(sizes.index[:ORIGINS])
        groups |= {str(origin): pairs[pairs["origin"] == origin] for origin in largest if origin != ALL}
    rows = [
        (name, measure, *found)
        for name, group in groups.items()
        for measure, found in _of(group).items()
        if found is not None
    ]
    if len(groups) > 1:
        share = float(sizes.iloc[0] / len(pairs))
        rows.append((ALL, "largest_origin", share, share, share, len(pairs)))
    return pd.DataFrame(rows, columns=COLUMNS)


def summary(
    pairs: pd.DataFrame,
    dropped: "pd.Series[bool]",
    merged: pd.DataFrame,
    meetings: pd.DataFrame,
    sets: Mapping[str, Sequence["EvalRow"]],
) -> dict[str, Any]:
    """What the gate read, dropped and kept, for the report.

    Args:
        pairs: the rows that were judged; `dropped` says which of them go.
        merged: rows that went into others before, from `annotators.agreed`.
        meetings: with the eval sets `sets`, from `contamination`.
    """
    kept = pairs[~dropped & pairs["fault"].isna()]
    return {
        "rows": {
            "read": len(pairs) + len(merged),
            "merged": len(merged),
            "dropped": int(dropped.sum()),
            "kept": int((~dropped).sum()),
        },
        "kinds": kinds(kept),
        "origins": _counts(kept["origin"]),
        "scripts": _counts(scripts(kept)),
        "evals": {name: _met(rows, meetings[meetings["set"] == name], kept) for name, rows in sets.items()},
    }


def _counts(values: "pd.Series[str]") -> dict[str, int]:
    """How many rows have which value, the most frequent first."""
    return {str(value): int(count) for value, count in values.value_counts().items()}


def _met(rows: Sequence["EvalRow"], meetings: pd.DataFrame, kept: pd.DataFrame) -> dict[str, int]:
    """How many rows of an eval set stand in a pair, and how many in one that is kept, exactly or in part."""
    exactly = meetings[meetings["how"] == "exact"]
    left = meetings[meetings["pair"].isin(kept["source"])]
    return {
        "rows": len(rows),
        "met": meetings["row"].nunique(),
        "met_exactly": exactly["row"].nunique(),
        "pairs": meetings["pair"].nunique(),
        "met_by_kept": left["row"].nunique(),
    }


def kinds(pairs: pd.DataFrame) -> dict[str, int]:
    """How many rows prefer in which way: sure (1), leaning (above 0.5), tied, reversed; of lone responses desirable or not."""
    lone = pairs["chosen"].isna() | pairs["rejected"].isna()
    preference = pairs["preference"]
    counts = {
        "sure": ~lone & (preference == 1),
        "leaning": ~lone & (preference < 1) & (preference > 0.5),
        "tied": ~lone & (preference == 0.5),
        "reversed": ~lone & (preference < 0.5),
        "desirable": lone & pairs["chosen"].notna(),
        "undesirable": lone & pairs["rejected"].notna(),
    }
    return {kind: int(rows.sum()) for kind, rows in counts.items() if rows.any()}


def scripts(pairs: pd.DataFrame) -> "pd.Series[str]":
    """The script that most letters of a row are of: LATIN, CYRILLIC, CJK, ...; "none" of a row without letters."""
    texts = [
        "".join([*(turn["content"] for turn in prompt), *(side for side in sides if isinstance(side, str))])
        for prompt, *sides in pairs[["prompt", "chosen", "rejected"]].itertuples(index=False)
    ]
    names: dict[str, str | None] = {}
    return pd.Series([_script(text, names) for text in texts], pairs.index, "str")


def _script(text: str, names: dict[str, str | None]) -> str:
    """`names` remembers the scripts of characters; None of what is no letter."""
    if text.isascii():
        return "LATIN" if any(map(str.isalpha, text)) else "none"
    letters: Counter[str] = Counter()
    for letter, count in Counter(text).items():
        if letter not in names:
            # A letter's name in Unicode starts with its script: CYRILLIC SMALL LETTER A, CJK UNIFIED IDEOGRAPH-4E00.
            names[letter] = unicodedata.name(letter, "none").split()[0] if letter.isalpha() else None
        if (script := names[letter]) is not None:
            letters[script] += count
    return max(letters, key=lambda script: (letters[script], script)) if letters else "none"


Found = tuple[float, float, float, int]  # share, low, high, n


def _of(pairs: pd.DataFrame) -> Mapping[str, Found | None]:
    said = pairs[["chosen", "rejected"]].dropna()
    certain = pairs.loc[said.index, "preference"]
    lengths = said["chosen"].str.len() - said["rejected"].str.len()
    signs = (lengths * (certain - 0.5))[lambda product: product != 0]  # above 0: the preferred one is longer
    prompts = ["\n".join(normalised(turn["content"]) for turn in prompt) for prompt in pairs["prompt"]]
    by_script = scripts(pairs).value_counts()
    first = pairs["chosen"].fillna(pairs["rejected"]).head(SAMPLE)
    return {
        "longer_preferred": _proportion(int((signs > 0).sum()), len(signs)),
        "disagreement": _mean([min(p, 1 - p) for p in certain]),
        "repeated_prompts": _count(len(prompts) - len(set(prompts)), len(prompts)),
        "repeated_runs": _repeated_runs(first),
        "other_scripts": _count(int(by_script.iloc[1:].sum()), len(pairs)),
    }


def _proportion(successes: int, n: int) -> Found | None:
    return (successes / n, *intervals.proportion(successes, n), n) if n else None


def _mean(values: list[float]) -> Found | None:
    return (sum(values) / len(values), *intervals.mean(values), len(values)) if values else None


def _count(part: int, n: int) -> Found | None:
    """A share of what there is: known, not estimated."""
    return (part / n, part / n, part / n, n) if n else None


def _repeated_runs(texts: Iterable[str]) -> Found | None:
    """One minus distinct-4: Li et al. 2016, arXiv:1510.03055, section 5.1, with runs of four."""
    seen: set[str] = set()
    n = 0
    for text in texts:
        said = words(text)
        for i in range(len(said) - RUN + 1):
            seen.add(" ".join(said[i : i + RUN]))
            n += 1
    return _count(n - len(seen), n)
