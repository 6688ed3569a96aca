"""Rows that duplicate or contradict other rows."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from datasketch import MinHash, MinHashLSH

from prefdag.lifecycle.progress import tracked
from prefdag.pairs.ngrams import normalised, run_hashes, words
from prefdag.runtime.processes import apply_each

RUN = 5  # words
PERMUTATIONS = 128  # bounds the standard error of an estimated similarity by 0.045

CHUNK = 1000  # texts that a process sketches at a time

COLUMNS = ["source", "prompt", "tools", "chosen", "rejected", "preference"]


def copy_of(sources: "pd.Series[str]", content: "pd.Series[str]") -> "pd.Series[str]":
    """The source of the first row with the same content, per row; null in that first row and in rows without content."""
    first = sources.groupby(content).transform("first")
    return first.where(content.duplicated(keep="first") & content.notna())


def near_copy_of(sources: "pd.Series[str]", texts: "pd.Series[str]", similarity: float) -> "pd.Series[str]":
    """The source of the first earlier row with nearly the same text, per row; null if there is none, or no text.

    The similarity of two texts is the Jaccard index of their runs of five words, estimated by MinHash (Broder 1997). A text
    of fewer words is one run. Rows are not compared with earlier rows that are near copies themselves.
    """
    rows = np.flatnonzero(texts.notna())
    sketches = _sketches(texts.iloc[rows].tolist())
    crowded = _shared_buckets(sketches, similarity)
    originals: defaultdict[int, list[int]] = defaultdict(list)  # of each bucket
    first: list[str | None] = [None] * len(texts)
    for i, buckets in crowded.items():
        candidates = sorted({j for bucket in buckets for j in originals[bucket]})
        alike = (sketches[candidates] == sketches[i]).mean(1) >= similarity
        if alike.any():
            first[rows[i]] = sources.iloc[rows[candidates[alike.argmax()]]]
        else:
            for bucket in buckets:
                originals[bucket].append(i)
    return pd.Series(first, sources.index, "str")


class _Numbers(dict[str, int]):
    """A number of 64 bits for each word, the same on every machine."""

    def __missing__(self, word: str) -> int:
        self[word] = number = int.from_bytes(hashlib.sha1(word.encode(), usedforsecurity=False).digest()[:8], "little")
        return number


def _sketches(texts: Sequence[str]) -> npt.NDArray[np.uint32]:
    """The MinHash of the runs of each text, (T, `PERMUTATIONS`)."""
    numbers = _Numbers()
    sketch = MinHash(PERMUTATIONS, hashfunc=int)

    def some(start: int) -> npt.NDArray[np.uint32]:
        rows = []
        for text in texts[start : start + CHUNK]:
            own = [numbers[word] for word in words(text)]
            own += [0] * (RUN - len(own))
            sketch.clear()
            sketch.update_batch((run_hashes(np.array(own, np.uint64), RUN) >> np.uint64(32)).tolist())
            rows.append(sketch.hashvalues)
        return np.stack(rows)

    starts = range(0, len(texts), CHUNK)
    parts = tracked(apply_each(some, starts, len(starts)), "row", "near copies", len(starts), CHUNK)
    return np.concatenate([np.zeros((0, PERMUTATIONS), np.uint32), *parts])


def _shared_buckets(sketches: npt.NDArray[np.uint32], similarity: float) -> dict[int, list[int]]:
    """The rows that share a bucket with another row, and these buckets: locality-sensitive hashing.

    The bands are as many as datasketch chooses for the similarity. Its own index keeps each row, which takes 2 kB more per row.
    """
    chosen = MinHashLSH(similarity, PERMUTATIONS)
    of_row: defaultdict[int, list[int]] = defaultdict(list)
    before = 0  # buckets of earlier bands
    for band in range(chosen.b):
        values = sketches[:, band * chosen.r : (band + 1) * chosen.r]
        _, bucket, sizes = np.unique(values, axis=0, return_inverse=True, return_counts=True)
        for row in np.flatnonzero(sizes[bucket] > 1).tolist():
            of_row[row].append(before + int(bucket[row]))
        before += len(sizes)
    return dict(sorted(of_row.items()))


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
