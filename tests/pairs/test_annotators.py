"""Judgements of several annotators become one preference per pair: by hand, and Bradley-Terry by its likelihood equations."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefdag.gate.duplicates import copy_of
from prefdag.pairs.annotators import PRIOR, bradley_terry, merge_annotators
from prefdag.pairs.schema import read_pairs

SIDES = ("chosen", "rejected")


def read(folder: Path, *rows: dict[str, Any]) -> pd.DataFrame:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_pairs(folder, "plain")


def judged(prompt: str, chosen: str, rejected: str, annotator: Any = None, **others: Any) -> dict[str, Any]:
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected, **others}
    return row if annotator is None else row | {"annotator": annotator}


def test_votes_by_hand(tmp_path: Path) -> None:
    pairs = read(
        tmp_path,
        judged("p", "a", "b", "ann"),
        judged("q", "a", "b"),  # without an annotator: unchanged
        judged("p", "b", "a", "bob"),
        judged("p", "b", "a", 3),
        judged("p", "b", "a", "bob"),  # a repeated judgement: one vote
        judged("r", "a", "b", "ann"),  # another prompt
        judged("s", "a", "b", "ann", preference=0.75),
        judged("s", "b", "a", "bob", preference=0.75),  # a tie: chosen and rejected stay in the first row's order
        judged("t", "a", "a", "ann"),  # equal responses are left for the gate
    )
    together, merged = merge_annotators(pairs)
    rows = together[["source", "chosen", "rejected", "preference"]].to_numpy().tolist()
    assert rows == [
        ["a.jsonl:1", "b", "a", pytest.approx(2 / 3)],  # bob and 3, but not ann
        ["a.jsonl:2", "a", "b", 1.0],
        ["a.jsonl:6", "a", "b", 1.0],
        ["a.jsonl:7", "a", "b", (0.75 + (1 - 0.75)) / 2],
        ["a.jsonl:9", "a", "a", 1.0],
    ]
    assert merged.to_numpy().tolist() == [
        ["a.jsonl:3", "a.jsonl:1", 3],
        ["a.jsonl:4", "a.jsonl:1", 3],
        ["a.jsonl:5", "a.jsonl:1", 3],
        ["a.jsonl:8", "a.jsonl:7", 2],
    ]
    assert pairs["chosen"][0] == "a"  # the input is unchanged


def test_responses_with_other_calls_are_others_and_keep_theirs(tmp_path: Path) -> None:
    """Two of three annotators prefer g to f; the tools of a row are part of its prompt."""
    f, g = ([{"role": "assistant", "content": None, "tool_calls": [{"name": name}]}] for name in "fg")
    votes: list[tuple[Any, Any, str]] = [(f, g, "ann"), (g, f, "bob"), (g, f, "eve")]
    rows = [{"prompt": "p", "chosen": c, "rejected": r, "annotator": who, "score_chosen": 1} for c, r, who in votes]
    rows += [{"prompt": "p", "chosen": f, "rejected": g, "annotator": "ann", "tools": [{"name": "f"}]}]
    together, merged = merge_annotators(read(tmp_path, *rows))
    assert merged["source"].tolist() == ["a.jsonl:2", "a.jsonl:3"]
    names = [[json.loads(e)["tool_calls"][0]["function"]["name"] for e in together[f"{s}_extra"]] for s in SIDES]
    assert names == [["g", "f"], ["f", "g"]]
    assert together["preference"].tolist() == pytest.approx([2 / 3, 1.0])


def test_judgements_out_of_range_and_single_responses_are_left_for_the_gate(tmp_path: Path) -> None:
    wrong = judged("p", "a", "b", "bob", preference=2)
    pairs = read(tmp_path, judged("p", "a", "b", "ann"), wrong, judged("p", "a", "b", "eve", preference=0.5))
    together, _ = merge_annotators(pairs)
    assert together["preference"].tolist() == [(1 + 0.5) / 2, 2.0]  # ann and eve; bob
    alone = pairs.assign(rejected=None)
    pd.testing.assert_frame_equal(merge_annotators(alone)[0], alone)


def test_an_annotator_who_judged_twice_has_the_mean_as_vote(tmp_path: Path) -> None:
    votes = [("a", "b", "ann"), ("b", "a", "ann"), ("a", "b", "bob")]
    together, _ = merge_annotators(read(tmp_path, *(judged("p", *vote) for vote in votes)))
    assert together["preference"].tolist() == [
        pytest.approx(((1 + 0) / 2 + 1) / 2)
    ]  # ann and bob; by rows it would be 2 / 3


def test_equal_rows_of_two_annotators_are_no_copies(tmp_path: Path) -> None:
    pairs = read(tmp_path, *(judged("p", "a", "b", name) for name in ("ann", "bob", "ann", None, None)))
    assert copy_of(pairs["source"], pairs["id"]).notna().tolist() == [False, False, True, False, True]


def test_votes_on_three_responses_are_combined(tmp_path: Path) -> None:
    """a beats b 3 to 1, and b beats c 3 to 1. One vote for c over a counts less than what follows from the others."""
    votes = [("a", "b")] * 3 + [("b", "a")] + [("b", "c")] * 3 + [("c", "b")] + [("c", "a")]
    together, _ = merge_annotators(read(tmp_path, *(judged("p", *pair, annotator=i) for i, pair in enumerate(votes))))
    preference = {(row.chosen, row.rejected): row.preference for row in together.itertuples()}
    assert preference["a", "c"] > 0.6
    assert 0.5 < preference["a", "b"] < 0.75
    assert preference["a", "b"] == pytest.approx(preference["b", "c"])


def test_without_annotators_nothing_changes(tmp_path: Path) -> None:
    pairs = read(tmp_path, judged("p", "a", "b"), judged("p", "b", "a"))
    together, merged = merge_annotators(pairs)
    pd.testing.assert_frame_equal(together, pairs)
    assert merged.empty


@pytest.mark.slow
@given(st.integers(2, 5), st.data())
def test_bradley_terry_maximises_the_likelihood(n: int, data: st.DataObject) -> None:
    """The likelihood equations: at the maximum, each response wins as often as the model expects."""
    wins = np.array([[0.0 if i == j else data.draw(st.integers(0, 5)) for j in range(n)] for i in range(n)])
    if n == 2 and not wins.any():
        wins[0, 1] = 1
    preferences = bradley_terry(wins)
    np.testing.assert_allclose(preferences + preferences.T, 1.0, atol=1e-12)
    votes = wins + (PRIOR if n > 2 else 0.0) * ((wins + wins.T) > 0)
    np.testing.assert_allclose(((votes + votes.T) * preferences).sum(axis=1), votes.sum(axis=1), atol=1e-4)
    odds = preferences / (1 - preferences + 1e-300)
    if n > 2:  # one strength per response, so odds multiply
        np.testing.assert_allclose(odds[0, 1] * odds[1, 2], odds[0, 2], rtol=1e-6)


def test_a_response_that_never_lost_is_nearly_certain() -> None:
    assert bradley_terry(np.array([[0.0, 4.0], [0.0, 0.0]]))[0, 1] == 1.0
    preferences = bradley_terry(np.array([[0.0, 4.0, 4.0], [0.0, 0.0, 4.0], [0.0, 0.0, 0.0]]))
    assert 0.99 < preferences[0, 1] < preferences[0, 2] < 1
