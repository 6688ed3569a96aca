"""Copies and contradictions among rows, by hand and against a brute-force comparison."""

import random
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefdag.gate import duplicates
from prefdag.gate.duplicates import conflict_with, copy_of, near_copy_of
from prefdag.pairs.ngrams import normalised
from prefdag.pairs.ngrams import words as words_of


def frame(*rows: tuple[str, str | None, str | None, float]) -> pd.DataFrame:
    pairs = [([{"role": "user", "content": prompt}], *others) for prompt, *others in rows]
    made = pd.DataFrame(pairs, columns=["prompt", "chosen", "rejected", "preference"])
    return made.assign(tools=None, source=[f"a:{i}" for i in range(1, len(rows) + 1)])


def as_list(values: "pd.Series[Any]") -> list[str | None]:
    """With None for null."""
    return [value if isinstance(value, str) else None for value in values]


def test_normalised_folds_case_and_space() -> None:
    assert normalised(" What\tIS\n\nit? ") == normalised("what is it?") == "what is it?"
    assert normalised("what is it") != normalised("what is it?")


def test_copies_by_hand() -> None:
    sources = pd.Series(["a:1", "a:2", "a:3", "a:4", "a:5"])
    content = pd.Series(["x", "y", "x", None, "x"])
    assert as_list(copy_of(sources, content)) == [None, None, "a:1", None, "a:1"]


def words(*changed: int, n: int = 100) -> str:
    """A text of n words, some of which differ from those of the others."""
    return " ".join(f"x{i}" if i in changed else f"w{i}" for i in range(n))


def test_near_copies_share_most_runs_of_five_words() -> None:
    """100 words have 96 runs. A changed word changes five of them: 91 / (96 + 5) = 0.90 are shared.

    Five changed words, far apart, change 25: 71 / (96 + 25) = 0.59.
    """
    texts = [words(), words(50), None, words().upper(), words(10, 30, 50, 70, 90), "short", "short", words(n=200)[400:]]
    sources = pd.Series([f"a:{i}" for i in range(1, 9)])
    assert as_list(near_copy_of(sources, pd.Series(texts, dtype="str"), 0.8)) == [
        *(None, "a:1", None, "a:1", None, None, "a:6", None)
    ]
    assert as_list(near_copy_of(sources, pd.Series(texts, dtype="str"), 0.4))[4] == "a:1"


def test_candidates_below_the_similarity_are_no_near_copies() -> None:
    """Four changed words: (96 - 20) / (96 + 20) = 0.66 of the runs are shared. Some of 100 pairs become candidates."""
    texts = [text.replace("w", f"v{n}w") for n in range(100) for text in (words(), words(10, 30, 50, 70))]
    sources = pd.Series([f"a:{i}" for i in range(len(texts))])
    assert as_list(near_copy_of(sources, pd.Series(texts), 0.8)) == [None] * len(texts)


def similarity(one: str, other: str) -> float:
    """The Jaccard index of the runs of five words."""
    sets = [{tuple(own[i : i + 5]) for i in range(max(1, len(own) - 4))} for own in map(words_of, (one, other))]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@pytest.mark.slow
@pytest.mark.parametrize("cores", ["1", "3"])
def test_near_copies_are_those_of_a_brute_force_comparison(cores: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of 1 to 60 words, many with a few words changed. Those near the limit may differ: it is an estimate."""
    monkeypatch.setenv("OMP_NUM_THREADS", cores)
    monkeypatch.setattr(duplicates, "CHUNK", 50)
    rng = random.Random(0)
    texts: list[str] = []
    for _ in range(400):
        own = (
            rng.choice(texts).split()
            if texts and rng.random() < 0.7
            else rng.choices("abcdefghij", k=rng.randint(1, 60))
        )
        for _ in range(rng.randint(0, 4)):
            own[rng.randrange(len(own))] = rng.choice("abcdefghij")
        texts.append(" ".join(own))
    sources = pd.Series([f"a:{i}" for i in range(len(texts))])
    found = as_list(near_copy_of(sources, pd.Series(texts), 0.8))
    for number, (text, near) in enumerate(zip(texts, found, strict=True)):
        alike = [similarity(text, other) for other, copy in zip(texts[:number], found, strict=False) if not copy]
        assert max(alike, default=0.0) < 0.95 if near is None else similarity(text, texts[int(near[2:])]) > 0.65
    assert 50 < sum(near is not None for near in found) < 300


def test_conflicts_by_hand() -> None:
    pairs = frame(
        ("p", "a", "b", 1.0),
        ("p", "b", "a", 1.0),  # the other way round
        ("P ", "A", " b", 0.2),  # the same by its preference, in another spelling
        ("p", "a", "b", 0.5),  # no preference
        ("p", "b", "a", 1.5),  # not a preference
        ("q", "b", "a", 1.0),  # to another prompt
        ("p", "a", "a", 1.0),  # one response, so no preference
        ("p", "a", None, 1.0),  # a single response
        ("p", None, "a", 1.0),  # labelled the other way
        ("p", None, "b", 1.0),
    )
    assert as_list(conflict_with(pairs)) == ["a:2", "a:1", "a:1", None, None, None, None, "a:9", "a:8", None]


def test_unreadable_rows_conflict_with_none() -> None:
    pairs = frame(("p", "a", "b", 1.0), ("p", "b", "a", 1.0))
    nothing = {
        "source": "a:3",
        "prompt": None,
        "tools": None,
        "chosen": None,
        "rejected": None,
        "preference": float("nan"),
    }
    pairs = pd.concat([pairs, pd.DataFrame([nothing, nothing | {"source": "a:4"}])], ignore_index=True)
    assert as_list(conflict_with(pairs)) == ["a:2", "a:1", None, None]


def test_other_tool_calls_or_tools_are_no_contradiction() -> None:
    pairs = frame(("p", "a", "b", 1.0), ("p", "b", "a", 1.0))
    assert as_list(conflict_with(pairs.assign(tools=["[1]", "[2]"]))) == [None, None]
    assert as_list(conflict_with(pairs.assign(tools=["[1]", "[1]"]))) == ["a:2", "a:1"]
    pairs["prompt"] = [[{"role": "user", "content": "p", "extra": extra}] for extra in ("{}", "[]")]
    assert as_list(conflict_with(pairs)) == [None, None]


texts = st.sampled_from(["a", "b", "A ", "c"])


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.sampled_from(["p", "q"]), texts, texts, st.sampled_from([0.0, 0.3, 0.5, 1.0])), max_size=8)
)
def test_conflicts_are_those_of_a_brute_force_comparison(rows: list[tuple[str, str, str, float]]) -> None:
    def better(row: tuple[str, str, str, float]) -> tuple[str, str, str] | None:
        prompt, chosen, rejected, preference = row[0], normalised(row[1]), normalised(row[2]), row[3]
        if preference == 0.5 or chosen == rejected:
            return None
        return (prompt, chosen, rejected) if preference > 0.5 else (prompt, rejected, chosen)

    preferred = [better(row) for row in rows]
    expected = [
        next((f"a:{j}" for j, b in enumerate(preferred, 1) if a and b and b == (a[0], a[2], a[1])), None)
        for a in preferred
    ]
    assert as_list(conflict_with(frame(*rows))) == expected
