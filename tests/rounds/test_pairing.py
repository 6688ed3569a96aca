"""Pairs from scored answers, worked out by hand."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from prefdag.config.judges import ImplicitJudge
from prefdag.config.round import Select
from prefdag.rounds.judging import two_by_two
from prefdag.rounds.pairing import carried, couples, pair_table, write
from prefdag.rounds.plan import JudgePlan
from prefdag.rounds.selection import copy_model, described
from prefdag.rounds.stopping import chosen_round
from prefdag.rounds.votes import Judged, Vote, by_scores, by_votes, merged
from prefdag.text.scoring.formatted import of_batch

ALL = Select(by="all", budget=None)


def plan(pairs: Any = "best_worst", min_margin: float = 0.0) -> JudgePlan:
    return JudgePlan(
        judge=ImplicitJudge(kind="implicit"),
        pairs=pairs,
        min_margin=min_margin,
        select=ALL,
        batch_size=1,
        tokens_per_batch=1,
        shard="none",
        seed=0,
    )


TEXTS, SCORES = ["a", "b", "c", "d"], [0.5, 2.0, -1.0, 1.0]


@pytest.mark.parametrize(
    ("how", "margin", "expected"),
    [
        ("best_worst", 0.0, [(1, 2)]),
        ("best_worst", 3.0, [(1, 2)]),
        ("best_worst", 3.1, []),
        ("all", 1.5, [(0, 2), (1, 0), (1, 2), (3, 2)]),
        ("best_random", 2.0, [(1, 2)]),
    ],
)
def test_couples(how: str, margin: float, expected: list[tuple[int, int]]) -> None:
    assert couples(TEXTS, SCORES, plan(how, margin), np.random.default_rng(0)) == expected


def test_best_random_takes_every_worse_answer_at_times() -> None:
    generator = np.random.default_rng(0)
    drawn = {couples(TEXTS, SCORES, plan("best_random"), generator)[0] for _ in range(50)}
    assert drawn == {(1, 0), (1, 2), (1, 3)}


@pytest.mark.parametrize("how", ["best_worst", "best_random", "all"])
def test_equal_texts_equal_scores_and_missing_scores_make_no_pair(how: str) -> None:
    generator = np.random.default_rng(0)
    assert couples(["a", "a"], [0.0, 1e-9], plan(how), generator) == []  # rewards of equal answers differ by rounding
    assert couples(["a", "b"], [1.0, 1.0], plan(how), generator) == []
    assert couples(["a", "b"], [1.0, float("nan")], plan(how), generator) == []
    assert couples(["a", "b"], [float("nan")] * 2, plan(how), generator) == []


MADE = {"round": 2, "policy": "abc", "sampler": {"kind": "local"}, "seed": 7}
ANSWERS = pd.DataFrame(
    [
        {"id": "p", "sample": 0, "text": "x", "ids": [5, 9], "tokens": 1, "ended": True, "score": 1.0},
        {"id": "p", "sample": 1, "text": "yy", "ids": [6, 6], "tokens": 2, "ended": False, "score": 3.0},
        {"id": "q", "sample": 0, "text": "x", "ids": [5, 9], "tokens": 1, "ended": True, "score": 1.0},
        {"id": "q", "sample": 1, "text": "z", "ids": [8, 9], "tokens": 1, "ended": True, "score": 1.0},
    ]
).assign(prompt="<p>", prompt_ids=[[1, 2]] * 4, scores=[[1.0], [3.0], [1.0], [1.0]])


VOTES = {(0, 1): Vote(0.0, "right"), (2, 3): Vote(0.5)}


def test_a_pair_says_where_it_comes_from() -> None:
    table, counts = pair_table(ANSWERS, VOTES, plan(), MADE, {"kind": "implicit"}, 9)
    assert counts == {"prompts": 2, "prompts_kept": 1, "prompts_rejected": 1, "pairs": 1}
    (row,) = table.to_pylist()
    assert row == {
        "id": "p/round-2/1-0",
        "source": "data/rounds/2/samples/answers.parquet:p",
        "prompt": "<p>",
        "chosen": "yy",
        "rejected": "x",
        "preference": 1.0,
        "prompt_ids": [1, 2],
        "chosen_ids": [6, 6, 9],  # the end of a cut answer, which is not scored
        "rejected_ids": [5, 9],
        "chosen_truncated": True,
        "rejected_truncated": False,
        "round": 2,
        "prompt_id": "p",
        "policy": "abc",
        "sampler": '{"kind": "local"}',
        "seed": 7,
        "judge": '{"kind": "implicit"}',
        "decided_by": "right",
        "chosen_sample": 1,
        "rejected_sample": 0,
        "chosen_score": 3.0,
        "rejected_score": 1.0,
        "chosen_scores": [3.0],
        "rejected_scores": [1.0],
        "chosen_tokens": 2,
        "rejected_tokens": 1,
    }
    read = of_batch(table.to_batches()[0])  # as a training reads it
    assert [read.part(0, number).tolist() for number in range(3)] == [[1, 2], [6, 6], [5, 9]]


def test_pairs_of_earlier_rounds_are_carried_along(tmp_path: Path) -> None:
    table, counts = pair_table(ANSWERS, VOTES, plan(), MADE, {"kind": "implicit"}, 9)
    assert carried(tmp_path, table).num_rows == 1
    write(tmp_path, table, ANSWERS, counts | {"round": 2})
    assert not (tmp_path / "off").exists()
    assert carried(tmp_path, table).num_rows == 2


def test_a_round_without_pairs_ends_the_rounds_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table, counts = pair_table(ANSWERS, VOTES, plan(min_margin=9.0), MADE, {"kind": "implicit"}, 9)
    write(tmp_path, table, ANSWERS, counts | {"round": 2})
    assert (tmp_path / "off").exists()
    assert not (tmp_path / "train.parquet").exists()
    assert "round 2: none of 2 prompts gave a pair" in caplog.text


def test_answers_are_judged_two_by_two() -> None:
    assert two_by_two([3, 4, 5, 6]) == [(3, 4), (5, 6)]
    assert two_by_two([3, 4, 5]) == [(3, 4), (5, 3)]


def test_a_judge_that_only_compares_scores_by_its_verdicts() -> None:
    """A verdict that could not be read counts for neither answer."""
    votes = {(0, 1): Vote(0.0), (0, 2): Vote(0.5), (1, 2): Vote(1.0), (0, 3): Vote(float("nan"))}
    np.testing.assert_array_equal(by_votes(4, votes).scores, [0.25, 1.0, 0.25, np.nan])


# Several judges


def of(*values: float) -> Judged:
    """A judge that gives the answers to one prompt these scores."""
    return by_scores(np.array(values), combinations(range(len(values)), 2))


def test_several_judges_have_a_vote_each() -> None:
    """Of two answers, a preference is the share of the votes, whatever the scale of the scores; a tie is half a vote."""
    found = merged([of(1, 2), of(0, 100), of(5, 4), of(3, 3)], [[0, 1]])
    assert found.votes == {(0, 1): Vote(1.5 / 4)}
    assert found.scores.tolist() == [0.375, 0.625]


def test_the_votes_on_several_answers_are_merged_by_bradley_terry() -> None:
    """Without PRIOR: of a cycle nothing is better; 2 of 3 votes are the odds 2 to 1 that the strengths then have."""
    cycle = merged([of(3, 2, 1), of(2, 1, 3), of(1, 3, 2)], [[0, 1, 2]])
    assert {vote.value for vote in cycle.votes.values()} == {0.5}
    assert cycle.scores.tolist() == [0.5] * 3
    nan = float("nan")
    chain = merged(
        [of(2, 1, nan), of(2, 1, nan), of(1, 2, nan), of(nan, 2, 1), of(nan, 2, 1), of(nan, 1, 2)], [[0, 1, 2]]
    )
    assert chain.votes[0, 1].value == pytest.approx(2 / 3, abs=0.01)
    assert chain.votes[0, 2].value == pytest.approx(4 / 5, abs=0.01)  # 4 to 1, though no judge compared them
    np.testing.assert_allclose(chain.scores, [(2 / 3 + 4 / 5) / 2, 0.5, (1 / 3 + 1 / 5) / 2], atol=0.01)


def test_a_judge_without_a_score_does_not_vote() -> None:
    nan = float("nan")
    found = merged([of(1, 2, nan), of(nan, nan, nan)], [[0, 1, 2]])
    np.testing.assert_array_equal(found.scores, [0, 1, nan])
    assert merged([of(nan, nan)], [[0, 1]]).votes == {}


def test_a_pair_of_several_judges_has_a_preference_and_their_scores() -> None:
    votes = {(0, 1): Vote(0.25), (2, 3): Vote(0.5)}
    answers = ANSWERS.assign(score=[0.25, 0.75, 0.5, 0.5], scores=[[1.0, 0.0], [3.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    (row,) = pair_table(answers, votes, plan(), MADE, [{"kind": "a"}, {"kind": "b"}], 9)[0].to_pylist()
    assert (row["chosen_sample"], row["preference"]) == (1, 0.75)
    assert (row["chosen_score"], row["chosen_scores"], row["rejected_scores"]) == (0.75, [3.0, 0.0], [1.0, 0.0])
    assert (row["judge"], row["decided_by"]) == ('[{"kind": "a"}, {"kind": "b"}]', None)


# Which policy is chosen


GOOD = {"go": True, "start": "previous", "reference": "first", "reasons": []}


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ({1: None, 2: None, 3: None}, 0),
        ({1: GOOD, 2: GOOD, 3: None}, 2),
        ({1: GOOD, 2: GOOD | {"go": False}, 3: None}, 1),
        ({1: GOOD | {"go": False}, 2: None, 3: None}, 0),
    ],
)
def test_the_last_good_round_is_chosen(results: dict[int, Any], expected: int) -> None:
    assert chosen_round(results) == expected


def test_health_is_told_whether_the_chosen_training_started_at_its_reference() -> None:
    assert described({1: None}) == {"round": 0, "at_reference": True, "reasons": []}
    assert not described({1: GOOD})["at_reference"]
    assert described({1: GOOD | {"reference": "previous"}}) == {"round": 1, "at_reference": True, "reasons": []}


def test_the_reasons_are_those_of_the_last_round_that_ran() -> None:
    failed = GOOD | {"go": False, "reasons": ["too far"]}
    assert described({1: GOOD, 2: failed, 3: None}) == {"round": 1, "at_reference": False, "reasons": ["too far"]}


def test_a_policy_is_copied_and_large_files_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefdag.rounds.selection.LARGE", 4)
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "templates").mkdir(parents=True)
    for name, text in (("small", "abc"), ("large", "abcd"), ("templates/t", "x"), ("cached", "abcde")):
        (source / name).write_text(text)
    (source / "cached").chmod(0o444)  # as DVC's links to its cache are
    copy_model(source, target)
    assert {p.relative_to(target).as_posix(): p.read_text() for p in target.rglob("*") if p.is_file()} == {
        "small": "abc",
        "large": "abcd",
        "templates/t": "x",
        "cached": "abcde",
    }
    linked = {name for name in ("small", "large", "cached") if (target / name).samefile(source / name)}
    assert linked == {"large"}
    assert (source / "cached").stat().st_mode & 0o777 == 0o444
