"""Which prompts make pairs, worked out by hand, and which judges are asked about which prompts."""

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest

from prefdag.config.judges import EndpointJudge, ImplicitJudge
from prefdag.config.round import Select
from prefdag.config.verify import JsonCheck, LengthCheck, VerifyJudge
from prefdag.rounds import asking, judging
from prefdag.rounds.plan import JudgePlan
from prefdag.rounds.selecting import at_random, disagreement, highest, uncertainty
from prefdag.rounds.votes import Judged, Vote, by_scores, only, rows_by_prompt

NAN = float("nan")
ABC = ["a", "b", "c"]


def of(*values: float) -> Judged:
    """A judge that gives the answers to one prompt these scores."""
    return by_scores(np.array(values), combinations(range(len(values)), 2))


def test_a_budget_selects_prompts_at_random() -> None:
    prompts = [str(i) for i in range(20)]
    assert len(at_random(prompts, 5, 0)) == 5
    assert at_random(prompts, 5, 0) == at_random(prompts, 5, 0) != at_random(prompts, 5, 1)
    assert at_random(prompts, 99, 0) == set(prompts)


def test_the_highest_values_are_selected_and_equal_ones_at_random() -> None:
    assert highest(["p", "q", "r", "s"], [-2.0, NAN, -1.0, -3.0], 2, 0) == {"p", "r"}
    assert highest(["p", "q", "r"], [NAN, -9.0, NAN], 1, 0) == {"q"}
    prompts = [str(i) for i in range(20)]
    drawn = [highest(prompts, [0.0] * 20, 5, seed) for seed in (0, 0, 1)]
    assert len(drawn[0]) == 5
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_policy_is_unsure_where_its_rewards_are_close() -> None:
    assert uncertainty([0.0, 1.0, 3.0], ABC) == -(1 + 3 + 2) / 3
    assert uncertainty([0.0, 1.0, 3.0], ["a", "b", "a"]) == -(1 + 2) / 2  # two equal answers make no pair
    assert np.isnan(uncertainty([0.0, 1.0], ["a", "a"]))


def test_judges_disagree_by_their_votes() -> None:
    """The first two differ in one couple of three. The third one finds all equal, half a vote from each of the others."""
    judges = [of(1, 2, 3), of(10, 30, 20), of(0, 0, 0)]
    assert disagreement(judges[:2], [0, 1, 2], ABC) == pytest.approx(1 / 3)
    assert disagreement(judges, [0, 1, 2], ABC) == pytest.approx((1 + 6 * 0.5) / 9 + 2 * 0.0)
    assert (
        disagreement(judges[:2], [0, 1, 2], ["a", "b", "b"]) == 0
    )  # the couple in which they differ has equal answers
    assert np.isnan(disagreement([of(1, 2), of(NAN, 2)], [0, 1], ["a", "b"]))


def test_some_of_the_answers_keep_their_scores_and_votes() -> None:
    judged = by_scores(np.array([1.0, 2.0, 5.0, 4.0]), [(0, 1), (2, 3)])
    kept = only(judged, [2, 3])
    assert kept.scores.tolist() == [5.0, 4.0]
    assert kept.votes == {(0, 1): Vote(1.0)}


# Who is asked about what


BRIEF = VerifyJudge(kind="verify", checks=[LengthCheck(kind="length", unit="words", max=1)])
JSON = VerifyJudge(kind="verify", checks=[JsonCheck(kind="json")])
SERVER = EndpointJudge(kind="endpoint", url="https://host/v1", model="m", max_tokens=9, timeout=9.0)
# Both programs fail x y and pass 1. JSON passes 1 2 not; of q alone, JSON prefers the first answer, BRIEF the second one.
ANSWERS = pd.DataFrame(
    [("p", "1"), ("p", "x y"), ("q", "[1, 2]"), ("q", "x"), ("r", "2"), ("r", "y z")], columns=["id", "text"]
)
REWARDS = [0.0, 5.0, 0.0, 3.0, 0.0, -4.0]  # implicit: q has the smallest margin


def ask(monkeypatch: pytest.MonkeyPatch, select: Select, *judges: Any) -> tuple[Any, dict[str, list[str]]]:
    """The result, and the prompts about which each judge was asked."""
    asked: dict[str, list[str]] = {}
    score = {"rounds.select": REWARDS, "json": [1.0, 0.0, 1.0, 0.0, 1.0, 0.0], "length": [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]}

    def judged(config: Any, answers: pd.DataFrame, dialogues: Any, needs: Any, where: str) -> Judged:
        name = config.checks[0].kind if isinstance(config, VerifyJudge) else config.kind
        asked[where if where == "rounds.select" else name] = list(dict.fromkeys(answers["id"]))
        values = score.get(where, score.get(name, range(6)))
        couples = [couple for rows in rows_by_prompt(answers) for couple in combinations(rows, 2)]
        return by_scores(np.array(values, dtype=float)[: len(answers)], couples)

    monkeypatch.setattr(judging, "judged", judged)
    plan = JudgePlan(
        judge=list(judges) if len(judges) > 1 else judges[0],
        pairs="all",
        min_margin=0.0,
        select=select,
        batch_size=1,
        tokens_per_batch=1,
        shard="none",
        seed=0,
    )
    anything: Any = None
    return asking.judged_by_all(plan, ANSWERS, anything, anything), asked


def test_an_endpoint_is_asked_about_the_prompts_of_which_the_policy_is_unsure(monkeypatch: pytest.MonkeyPatch) -> None:
    (answers, each), asked = ask(monkeypatch, Select(by="uncertainty", budget=1), SERVER)
    assert asked == {"rounds.select": ["p", "q", "r"], "endpoint": ["q"]}
    assert answers["text"].tolist() == ["[1, 2]", "x"]
    assert len(each) == 1


def test_an_endpoint_is_asked_about_the_prompts_on_which_other_judges_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    (answers, each), asked = ask(monkeypatch, Select(by="disagreement", budget=1), SERVER, JSON, BRIEF)
    assert asked == {"json": ["p", "q", "r"], "length": ["p", "q", "r"], "endpoint": ["q"]}
    assert answers["text"].tolist() == ["[1, 2]", "x"]
    assert [judged.scores.tolist() for judged in each[1:]] == [[1.0, 0.0], [0.0, 1.0]]
    assert each[1].votes == {(0, 1): Vote(1.0)}


def test_an_endpoint_and_one_other_judge_are_asked_about_all(monkeypatch: pytest.MonkeyPatch) -> None:
    (answers, _), asked = ask(monkeypatch, Select(by="disagreement", budget=1), SERVER, JSON)
    assert asked == {"json": ["p", "q", "r"], "endpoint": ["p", "q", "r"]}
    assert len(answers) == 2


def test_all_or_random_prompts_ask_no_further_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    implicit = ImplicitJudge(kind="implicit")
    assert ask(monkeypatch, Select(by="all", budget=None), implicit)[1] == {"implicit": ["p", "q", "r"]}
    assert len(ask(monkeypatch, Select(by="random", budget=2), implicit)[1]["implicit"]) == 2
