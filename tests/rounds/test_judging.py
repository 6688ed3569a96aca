"""Scores of several answers to a prompt, by judges that see two at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from prefdag.config.judges import EndpointJudge, ImplicitJudge, Judge
from prefdag.config.verify import FunctionCheck, LengthCheck, NumberCheck, RegexCheck, VerifyJudge
from prefdag.lifecycle.errors import DataError, ParamsError
from prefdag.pairs.turns import Asked
from prefdag.rounds import comparing, judging
from prefdag.rounds.votes import Judged
from prefdag.text.evaluation import judging as judges
from prefdag.text.evaluation.judging import Needs

TEXTS = {"p": ["a", "bbb", "cc"], "q": ["dddd", "e"]}
ANSWERS = pd.DataFrame(
    [
        {"id": key, "prompt_ids": [1], "text": text, "ids": [len(text)], "tokens": len(text)}
        for key, texts in TEXTS.items()
        for text in texts
    ]
)
DIALOGUES = {key: Asked([{"role": "user", "content": key}], None) for key in TEXTS}
ENDPOINT = EndpointJudge(kind="endpoint", url="https://host/v1", model="m", max_tokens=9, timeout=9.0)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def judged(judge: Judge, answers: pd.DataFrame = ANSWERS, own: Any = None, **chosen: str) -> Judged:
    anything: Any = None
    rows = Path("rows.parquet")
    pd.DataFrame({"id": list(TEXTS), "chosen": map(chosen.get, TEXTS)}).to_parquet(rows)
    needs = Needs(anything, anything, anything, rows, anything, lambda: own or {})
    return judging.judged(judge, answers, DIALOGUES, needs, "rounds.judge")


def values(found: Judged) -> dict[tuple[int, int], float]:
    return {couple: vote.value for couple, vote in found.votes.items()}


def test_each_answer_gets_its_own_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three answers to one prompt are two contests, and no contest has answers to different prompts."""

    def rewards(config: Any, pairs: pd.DataFrame, *_: Any) -> pd.DataFrame:
        for row in pairs.to_dict("records"):
            assert {row["text_reference"], row["text_policy"]} <= set(TEXTS[row["id"]])
            assert row["messages"] == [{"role": "user", "content": row["id"]}]
        return pd.DataFrame({f"reward_{side}": pairs[f"text_{side}"].map(len) for side in ("reference", "policy")})

    monkeypatch.setattr(judges, "verdicts", rewards)
    found = judged(ImplicitJudge(kind="implicit"))
    assert list(found.scores) == [1, 3, 2, 4, 1]
    assert values(found) == {(0, 1): 0, (0, 2): 0, (1, 2): 1, (3, 4): 1}


def test_a_judge_that_compares_sees_every_two_answers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def longer_wins(config: Any, pairs: pd.DataFrame, *_: Any) -> pd.DataFrame:
        assert len(pairs) == 3 + 1
        sign = np.sign(pairs["tokens_policy"] - pairs["tokens_reference"])
        return pd.DataFrame({"outcome": sign.map({1: "win", 0: "tie", -1: "loss"})})

    monkeypatch.setattr(judges, "verdicts", longer_wins)
    found = judged(ENDPOINT)
    assert list(found.scores) == [0.0, 1.0, 0.5, 1.0, 0.0]
    assert values(found) == {(0, 1): 0, (0, 2): 0, (1, 2): 1, (3, 4): 1}


def test_verdicts_of_several_judges_are_merged_by_majority() -> None:
    outcomes = {
        "judge.0": ["win", "win", "loss", "unread", "unread"],
        "judge.1": ["win", "loss", "tie", "win", "unread"],
        "stopping_judge": ["tie"] * 5,
    }
    keys = {"id": list("abcde"), "decoding": "sampled"}
    found = comparing.merged_verdicts({name: pd.DataFrame({**keys, "outcome": own}) for name, own in outcomes.items()})
    assert {name: own["outcome"].tolist() for name, own in found.items()} == {
        "judge": ["win", "tie", "loss", "win", "unread"],
        "stopping_judge": ["tie"] * 5,
    }


# A program


SUMS = pd.DataFrame(
    [
        {"id": "p", "prompt_ids": [1], "text": text, "ids": [1], "tokens": 1}
        for text in ("7", "It is 7, really", "It is 8", "no")
    ]
)
RIGHT, BRIEF = NumberCheck(kind="number", name="right"), LengthCheck(kind="length", unit="words", max=1, name="brief")
LOUD = RegexCheck(kind="regex", pattern="!")


def test_the_score_of_a_program_is_the_mean_of_its_checks() -> None:
    found = judged(VerifyJudge(kind="verify", checks=[RIGHT, BRIEF]), SUMS, p="So 7")
    assert list(found.scores) == [1.0, 0.5, 0.0, 0.5]
    assert values(found) == {(0, 1): 1, (0, 2): 1, (0, 3): 1, (1, 2): 1, (1, 3): 0.5, (2, 3): 0}
    assert {vote.decided_by for vote in found.votes.values()} == {""}
    alone = judged(VerifyJudge(kind="verify", checks=[RIGHT]), SUMS, p="So 7")
    assert alone.votes[0, 2] == (1.0, "right")


def test_a_program_in_order_compares_and_says_which_check_decided() -> None:
    """`right` decides between 7 and 8, `brief` between two right answers or two wrong ones. The score: the mean of votes."""
    judge = VerifyJudge(kind="verify", checks=[RIGHT, BRIEF, LOUD], combine="in_order")
    found = judged(judge, SUMS, p="So 7")
    assert found.votes == {
        (0, 1): (1.0, "brief"),
        (0, 2): (1.0, "right"),
        (0, 3): (1.0, "right"),
        (1, 2): (1.0, "right"),
        (1, 3): (1.0, "right"),
        (2, 3): (0.0, "brief"),
    }
    np.testing.assert_allclose(found.scores, [1, 2 / 3, 0, 1 / 3])


def test_a_function_of_the_users_gives_the_score() -> None:
    own = {"long": lambda messages, answer, chosen: len(answer) + len(messages[0]["content"])}
    function = FunctionCheck.__new__(FunctionCheck)  # its name is not in this repository's stages/verify.py
    for key, value in {"kind": "function", "function": "long", "name": None}.items():
        object.__setattr__(function, key, value)
    assert list(judged(VerifyJudge(kind="verify", checks=[function]), own=own).scores) == [2, 4, 3, 5, 2]
    with pytest.raises(ParamsError, match=r"^params.yaml: rounds.judge.checks.0.function: 'long' in CHECKS"):
        judged(VerifyJudge(kind="verify", checks=[function]), own={"long": 3})


def test_prompts_without_anything_to_compare_with_have_no_scores() -> None:
    judge = VerifyJudge(kind="verify", checks=[RIGHT, BRIEF], combine="in_order")
    with pytest.raises(DataError, match=r"no chosen response .* has a number, with which a check of rounds.judge"):
        judged(judge, SUMS, p="none")
    some = judged(judge, ANSWERS, p="3", q="none").scores
    assert np.isnan(some).tolist() == [False] * 3 + [True] * 2
