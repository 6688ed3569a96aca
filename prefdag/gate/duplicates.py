"""Rows that say the same as other rows, or the opposite."""

import json

import pandas as pd
from datasketch import MinHash, MinHashLSH

from prefdag.pairs.ngrams import normalised, runs

RUN = 5  # words
PERMUTATIONS = 128  # the standard error of an estimated similarity is then at most 0.045

COLUMNS = ["source", "prompt", "chosen", "rejected", "preference"]


def copy_of(sources: "pd.Series[str]", content: "pd.Series[str]") -> "pd.Series[str]":
    """For each row the source of the first row with the same content; null in that first row, and without content."""
    first = sources.groupby(content).transform("first")
    return first.where(content.duplicated(keep="first") & content.notna())


def near_copy_of(sources: "pd.Series[str]", texts: "pd.Series[str]", similarity: float) -> "pd.Series[str]":
    """For each row the source of the first that says nearly the same before it; null where none does, and without text.

    Two texts are as similar as the share, of the runs of five words in either, that stand in both (Jaccard), estimated by
    MinHash (Broder 1997). Earlier rows that are near copies themselves are not compared with.
    """
    blank = MinHash(PERMUTATIONS)
    index = MinHashLSH(similarity, PERMUTATIONS)
    sketches: dict[int, MinHash] = {}
    found: list[str | None] = []
    for number, text in enumerate(texts):
        near = None
        if isinstance(text, str):
            sketch = blank.copy()
            sketch.update_batch([run.encode() for run in runs(text, RUN)])
            near = min((i for i in index.query(sketch) if sketches[i].jaccard(sketch) >= similarity), default=None)
            if near is None:
                index.insert(number, sketch)
                sketches[number] = sketch
        found.append(None if near is None else sources.iloc[near])
    return pd.Series(found, sources.index, "str")


def conflict_with(pairs: pd.DataFrame) -> "pd.Series[str]":
    """For each row the source of the first that prefers the other way round; null where there is none.

    Both have, `normalised`, the same prompt and the same two responses; or the same single one, labelled the other way.
    A preference of 0.5, or of no probability, contradicts nothing.

    Args:
        pairs: what `schema.read_pairs` returned.
    """
    said = []  # what a row is about, and which of the two responses it prefers: 1, -1, or 0 for neither
    first: dict[tuple[str, int], str] = {}
    for source, prompt, *sides, preference in pairs[COLUMNS].itertuples(index=False):
        chosen, rejected = (normalised(side) if isinstance(side, str) else None for side in sides)
        sign = (0.5 < preference <= 1) - (0 <= preference < 0.5) if chosen != rejected else 0
        responses = [chosen, rejected]
        if chosen is None or (rejected is not None and rejected < chosen):
            responses.reverse()
            sign = -sign
        turns = [(turn["role"], normalised(turn["content"])) for turn in prompt] if isinstance(prompt, list) else None
        subject = json.dumps([turns, responses])
        said.append((subject, sign))
        first.setdefault((subject, sign), source)
    return pd.Series([first.get((subject, -sign)) if sign else None for subject, sign in said], pairs.index, "str")
