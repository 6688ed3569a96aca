"""Contamination: rows of eval sets that stand in the training pairs, so that their score says nothing.

A row of an eval set stands in a pair

    exactly    where its prompt, or a text that it asks the model to score, is the pair's prompt, one of its turns or one
               of its responses;
    in part    where it shares a run of 13 words with it (Brown et al. 2020, arXiv:2005.14165, appendix C).

Letter case, punctuation and white space do not count.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from prefdag.pairs.ngrams import words

if TYPE_CHECKING:
    from prefdag.pairs.eval_sets import EvalRow

RUN = 13  # words
CHUNK = 1000  # pairs that are looked at together
# A run's hash is the sum of its words' numbers times these, modulo 2^64. What it finds is compared word by word.
WEIGHTS = np.random.default_rng(0).integers(1, 2**63, RUN, dtype=np.uint64) | np.uint64(1)

COLUMNS = ["set", "row", "pair", "how", "words"]


class _Spot(NamedTuple):
    """A row of an eval set: its set and its source."""

    set: str
    source: str


def contamination(pairs: pd.DataFrame, sets: Mapping[str, Sequence["EvalRow"]]) -> pd.DataFrame:
    """Every meeting of a row of an eval set with a pair, in the order of the pairs.

    Args:
        pairs: what `schema.read_pairs` returned; unreadable rows meet nothing.

    Returns:
        Columns `set`, `row` (source of the eval row), `pair` (source of the pair), `how` ("exact" or "13 words") and
        `words`, those that they share. A row and a pair meet once: exactly, or in their first common run.
    """
    index = _Index(sets)
    found = []
    readable = pairs[pairs["prompt"].notna()]
    for start in range(0, len(readable), CHUNK):
        part = readable.iloc[start : start + CHUNK]
        texts = [list(_texts(*row)) for row in part[["prompt", "chosen", "rejected"]].itertuples(index=False)]
        runs = index.runs_in(texts)
        for source, own, shared in zip(part["source"], texts, runs, strict=True):
            meetings = {spot: ("exact", text) for text in own for spot in index.exact.get(text, ())}
            meetings = {spot: (f"{RUN} words", text) for spot, text in shared.items()} | meetings
            found += [(spot.set, spot.source, source, how, text) for spot, (how, text) in sorted(meetings.items())]
    return pd.DataFrame(found, columns=COLUMNS, dtype="str")


def _texts(prompt: Sequence[Mapping[str, str]], *responses: str | None) -> Iterator[str]:
    """The words of each turn, of the dialogue as a whole, and of each response."""
    turns = [" ".join(words(turn["content"])) for turn in prompt]
    yield from turns
    if len(turns) > 1:
        yield " ".join(turns)
    yield from (" ".join(words(response)) for response in responses if isinstance(response, str))


def _asked(row: "EvalRow") -> list[str]:
    """The words of what an eval row asks: of a dialogue the prompt; of text to be continued each continuation with it."""
    if isinstance(row.prompt, str):
        return [" ".join(words(row.prompt + response)) for response in (*row.right_responses, *row.wrong_responses)]
    return [" ".join(" ".join(words(turn["content"])) for turn in row.prompt)]


def _answers(row: "EvalRow") -> list[str]:
    """The words of the responses to a dialogue."""
    if isinstance(row.prompt, str):
        return []
    return [" ".join(words(response)) for response in (*row.right_responses, *row.wrong_responses)]


class _Index:
    """The texts and the runs of the eval sets, to be looked up."""

    def __init__(self, sets: Mapping[str, Iterable["EvalRow"]]) -> None:
        self.exact: dict[str, dict[_Spot, None]] = {}
        self._runs: dict[str, dict[_Spot, None]] = {}
        for name, rows in sets.items():
            for row in rows:
                spot, asked = _Spot(name, row.source), _asked(row)
                for text in asked:
                    self.exact.setdefault(text, {})[spot] = None
                for text in [*asked, *_answers(row)]:
                    own = text.split()
                    for i in range(len(own) - RUN + 1):
                        self._runs.setdefault(" ".join(own[i : i + RUN]), {})[spot] = None
        said = [word for run in self._runs for word in run.split()]
        self._numbers = {word: number for number, word in enumerate(dict.fromkeys(said), 1)}
        self._hashes = np.unique(_hashes(np.array([self._numbers[word] for word in said], np.uint64), RUN))

    def runs_in(self, pairs: Sequence[Sequence[str]]) -> list[dict[_Spot, str]]:
        """For each pair, given as its texts, the eval rows that share a run with it, and the first such run."""
        found: list[dict[_Spot, str]] = [{} for _ in pairs]
        if not self._runs:
            return found
        owners: list[int] = []
        said: list[str] = []
        for owner, texts in enumerate(pairs):
            for text in texts:
                own = text.split()
                said += [*own, ""]  # a word that nobody says: no run goes on into the next text
                owners += [owner] * (len(own) + 1)
        numbers = np.array([self._numbers.get(word, 0) for word in said], dtype=np.uint64)
        for i in np.flatnonzero(np.isin(_hashes(numbers, 1), self._hashes)).tolist():
            run = " ".join(said[i : i + RUN])
            for spot in self._runs.get(run, ()):
                found[owners[i]].setdefault(spot, run)
        return found


def _hashes(numbers: npt.NDArray[np.uint64], step: int) -> npt.NDArray[np.uint64]:
    """The hash of every `step`-th run of `RUN` numbers."""
    if len(numbers) < RUN:
        return np.zeros(0, np.uint64)
    n = len(numbers) - RUN + 1
    total = np.zeros(len(range(0, n, step)), np.uint64)
    for place, weight in enumerate(WEIGHTS):
        total += numbers[place : place + n : step] * weight
    return total
