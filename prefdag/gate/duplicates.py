"""Rows that duplicate or contradict other rows."""

import json

import pandas as pd
from datasketch import MinHash, MinHashLSH

from prefdag.pairs.ngrams import normalised, runs

RUN = 5  # words
PERMUTATIONS = 128  # bounds the standard error of an estimated similarity by 0.045

COLUMNS = ["source", "prompt", "tools", "chosen", "rejected", "preference"]


def copy_of(sources: "pd.Series[str]", content: "pd.Series[str]") -> "pd.Series[str]":
    """The source of the first row with the same content, per row; null in that first row and in rows without content."""
    first = sources.groupby(content).transform("first")
    return first.where(content.duplicated(keep="first") & content.notna())


def near_copy_of(sources: "pd.Series[str]", texts: "pd.Series[str]", similarity: float) -> "pd.Series[str]":
    """The source of the first earlier row with nearly the same text, per row; null if there is none, or no text.

    The similarity of two texts is the Jaccard index of their runs of five words, estimated by MinHash (Broder 1997). Rows
    are not compared with earlier rows that are near copies themselves.
    """
    blank = MinHash(PERMUTATIONS)
    index = MinHashLSH(similarity, PERMUTATIONS)
    sketches: dict[int, MinHash] = {}
    originals: list[str | None] = []
    for number, text in enumerate(texts):
        near = None
        if isinstance(text, str):
            sketch = blank.copy()
            sketch.update_batch([run.encode() for run in runs(text, RUN)])
            near = min((i for i in index.query(sketch) if sketches[i].jaccard(sketch) >= similarity), default=None)
            if near is None:
                index.insert(number, sketch)
                sketches[number] = sketch
        originals.append(None if near is None else sources.iloc[near])
    return pd.Series(originals, sources.index, "str")


def conflict_with(pairs: pd.DataFrame) -> "pd.Series[str]":
    """The source of the first row with the opposite preference, per row; null if there is none.

    Two such rows have the same prompt and the same two responses, `normalised`; or the same single response with opposite
    labels. A preference of 0.5, or one that is not a probability, contradicts nothing.

    Args:
        pairs: from `schema.read_pairs`. If responses have tool calls or reasoning, they are part of the texts.
    """
    judgements = []  # the prompt and the responses in a fixed order, and the preferred one: 1, -1, or 0 for neither
    first: dict[tuple[str, int], str] = {}
    for source, prompt, tools, *sides, preference in pairs[COLUMNS].itertuples(index=False):
        chosen, rejected = (normalised(side) if isinstance(side, str) else None for side in sides)
        sign = (0.5 < preference <= 1) - (0 <= preference < 0.5) if chosen != rejected else 0
        responses = [chosen, rejected]
        if chosen is None or (rejected is not None and rejected < chosen):
            responses.reverse()
            sign = -sign
        turns = (
            [(turn["role"], normalised(turn["content"]), turn.get("extra")) for turn in prompt]
            if isinstance(prompt, list)
            else None
        )
        subject = json.dumps([turns, tools if isinstance(tools, str) else None, responses])
        judgements.append((subject, sign))
        first.setdefault((subject, sign), source)
    conflicts = [first.get((subject, -sign)) if sign else None for subject, sign in judgements]
    return pd.Series(conflicts, pairs.index, "str")
