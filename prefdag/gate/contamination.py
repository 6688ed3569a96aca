"""Contamination: rows of eval sets that also occur in the training pairs, which makes their score meaningless.

A row of an eval set overlaps with a pair

    exactly    if its prompt, or a text that the model is to score, equals the pair's prompt, one of its turns or one of its
               responses;
    in part    if both contain the same run of 13 words (Brown et al. 2020, arXiv:2005.14165, appendix C).

Letter case, punctuation and white space are ignored.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from prefdag.lifecycle.progress import tracked
from prefdag.pairs.ngrams import run_hashes, words
from prefdag.runtime.processes import apply_each

if TYPE_CHECKING:
    from prefdag.pairs.eval_sets import EvalRow

RUN = 13  # words
CHUNK = 1000  # pairs that a process compares at a time

TEXTS = ["prompt", "chosen", "rejected", "chosen_extra", "rejected_extra"]  # tool calls and reasoning are JSON
COLUMNS = ["set", "row", "pair", "how", "words"]


class _EvalKey(NamedTuple):
    """The set and the source of a row of an eval set."""

    set: str
    source: str


def find_overlaps(pairs: pd.DataFrame, sets: Mapping[str, Sequence["EvalRow"]]) -> pd.DataFrame:
    """Every overlap of a row of an eval set with a pair, in the order of the pairs.

    Args:
        pairs: from `schema.read_pairs`; unreadable rows are skipped.

    Returns:
        Columns `set`, `row` (source of the eval row), `pair` (source of the pair), `how` ("exact" or "13 words") and
        `words`, the common words. A row and a pair are listed once: as exact, or with their first common run.
    """
    index = _Index(sets)
    readable = pairs[pairs["prompt"].notna()]

    def some(start: int) -> list[tuple[str, ...]]:
        overlaps: list[tuple[str, ...]] = []
        part = readable.iloc[start : start + CHUNK]
        texts = [list(_texts(*row)) for row in part.reindex(columns=TEXTS).itertuples(index=False)]
        runs = index.runs_in(texts)
        for source, own, shared in zip(part["source"], texts, runs, strict=True):
            exact = {key: ("exact", text) for text in own for key in index.exact.get(text, ())}
            matches = {key: (f"{RUN} words", text) for key, text in shared.items()} | exact
            overlaps += [(key.set, key.source, source, how, text) for key, (how, text) in sorted(matches.items())]
        return overlaps

    starts = range(0, len(readable), CHUNK)
    parts = tracked(apply_each(some, starts, len(starts)), "row", "overlaps", len(starts), CHUNK)
    return pd.DataFrame(list(chain.from_iterable(parts)), columns=COLUMNS, dtype="str")


def _texts(prompt: Sequence[Mapping[str, str]], *responses: str | None) -> Iterator[str]:
    """The words of each turn, of the whole dialogue, of each response, and of tool calls and reasoning."""
    turns = [" ".join(words(turn["content"])) for turn in prompt]
    yield from turns
    if len(turns) > 1:
        yield " ".join(turns)
    others = [*responses, *(turn.get("extra") for turn in prompt)]
    yield from (" ".join(words(text)) for text in others if isinstance(text, str))


def _asked(row: "EvalRow") -> list[str]:
    """The words of a dialogue's prompt; or of a text to be continued, once with each continuation."""
    if isinstance(row.prompt, str):
        return [" ".join(words(row.prompt + response)) for response in (*row.right_responses, *row.wrong_responses)]
    return [" ".join(" ".join(words(turn["content"])) for turn in row.prompt)]


def _answers(row: "EvalRow") -> list[str]:
    """The words of the responses to a dialogue."""
    if isinstance(row.prompt, str):
        return []
    return [" ".join(words(response)) for response in (*row.right_responses, *row.wrong_responses)]


class _Index:
    """The texts and the runs of the eval sets, for lookup."""

    def __init__(self, sets: Mapping[str, Iterable["EvalRow"]]) -> None:
        self.exact: dict[str, dict[_EvalKey, None]] = {}
        self._runs: dict[str, dict[_EvalKey, None]] = {}
        for name, rows in sets.items():
            for row in rows:
                key, asked = _EvalKey(name, row.source), _asked(row)
                for text in asked:
                    self.exact.setdefault(text, {})[key] = None
                for text in [*asked, *_answers(row)]:
                    own = text.split()
                    for i in range(len(own) - RUN + 1):
                        self._runs.setdefault(" ".join(own[i : i + RUN]), {})[key] = None
        in_runs = [word for run in self._runs for word in run.split()]
        self._numbers = {word: number for number, word in enumerate(dict.fromkeys(in_runs), 1)}
        numbers = np.array([self._numbers[word] for word in in_runs], np.uint64)
        self._hashes = np.unique(run_hashes(numbers, RUN, step=RUN))

    def runs_in(self, pairs: Sequence[Sequence[str]]) -> list[dict[_EvalKey, str]]:
        """The eval rows that share a run with each pair, given as its texts, and the first such run."""
        first_runs: list[dict[_EvalKey, str]] = [{} for _ in pairs]
        if not self._runs:
            return first_runs
        owners: list[int] = []
        all_words: list[str] = []
        for owner, texts in enumerate(pairs):
            for text in texts:
                own = text.split()
                all_words += [*own, ""]  # not a word of any run, so that no run extends into the next text
                owners += [owner] * (len(own) + 1)
        numbers = np.array([self._numbers.get(word, 0) for word in all_words], dtype=np.uint64)
        for i in np.flatnonzero(np.isin(run_hashes(numbers, RUN), self._hashes)).tolist():  # compared word by word
            run = " ".join(all_words[i : i + RUN])
            for key in self._runs.get(run, ()):
                first_runs[owners[i]].setdefault(key, run)
        return first_runs
