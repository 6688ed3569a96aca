"""From the answers of a round to the table of rounds and the findings. Judges are checks of a program."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from prefdag.config.verify import LengthCheck, NumberCheck, RegexCheck, VerifyJudge
from prefdag.health import rounds as health
from prefdag.health.verdict import Verdict
from prefdag.pairs.turns import Asked
from prefdag.rounds import comparing, judging, table
from prefdag.runtime.artifacts import read_csv
from prefdag.text.evaluation import judge
from prefdag.text.generation import answers

EOS = 0
LONG = VerifyJudge(kind="verify", checks=[LengthCheck(kind="length", unit="words", min=5)])
RIGHT = VerifyJudge(kind="verify", checks=[RegexCheck(kind="regex", pattern=r"^7\b")])
SAME_NUMBER = VerifyJudge(kind="verify", checks=[NumberCheck(kind="number")])


def answered(texts: list[str]) -> pd.DataFrame:
    """Answers to the prompts p0, p1, ..., one token a word."""
    prompts = pd.DataFrame({"id": [f"p{i}" for i in range(len(texts))], "prompt_ids": [[5]] * len(texts)})
    ids = [[*(int.from_bytes(word.encode(), "big") for word in text.split()), EOS] for text in texts]
    return answers.rows(prompts, texts, ids, (EOS,))


def result(before: list[str], after: list[str], judges: dict[str, VerifyJudge], **changes: Any) -> dict[str, Any]:
    """What evaluate_round would write."""
    one, other = answered(before), answered(after)
    contests = judging.head_to_head(one, other, {key: Asked([], None) for key in one["id"]})
    chosen: dict[str, str | None] = dict.fromkeys(one["id"], "7")
    verdicts = {name: judge.by_checks(contests, chosen, each, {}) for name, each in judges.items()}
    kl = {"kl_to_reference": 1.0, "kl_to_reference_low": 0.5, "kl_to_reference_high": 1.5}
    pairs = {"prompts": 9, "prompts_kept": 7, "prompts_rejected": 2, "pairs": 8}
    means = {"before": comparing.means(one) | kl, "after": comparing.means(other)}
    change = comparing.distinct_change(*map(answers.ids_without_end, (one, other)))
    return {
        "go": True,
        "pairs": pairs,
        "change": change,
        **kl,
        **means,
        **comparing.rates(contests, verdicts),
        **changes,
    }


def verdict(folder: Path, *results: dict[str, Any], chosen: int | None = None) -> Verdict:
    rows = table.rows(dict(enumerate(results, 1)), len(results) if chosen is None else chosen)
    table.write(folder / "table.csv", rows)
    return health.examine(read_csv(folder / "table.csv"))


def names(found: Verdict) -> list[str]:
    return [finding.name for finding in found.findings]


def texts(share_right: float, words: int, seed: int) -> list[str]:
    """64 answers: a number, 7 if it is right, and words."""
    rng = np.random.default_rng(seed)
    word = rng.choice(list("abcdefgh"), (999, 3))
    return [
        " ".join(["7" if rng.random() < share_right else "8", *map("".join, rng.choice(word, n))])
        for n in rng.integers(words - 1, words + 2, 64)
    ]


# Judges


def test_a_judge_that_prefers_length_is_found(tmp_path: Path) -> None:
    """Answers get longer, and are right as often as before."""
    judges = {"judge": LONG, "stopping_judge": RIGHT}
    found = verdict(tmp_path, result(texts(0.5, 3, 1), texts(0.5, 9, 2), judges))
    assert names(found) == ["judge_exploitation", "length_drift"]
    assert "in round 1 the judge prefers the new policy (win rate " in found.findings[0].sentence
    assert found.not_checked == []


@pytest.mark.slow
def test_a_fair_judge_is_not_found(tmp_path: Path) -> None:
    """More answers are right, and two different programs see it."""
    judges = {"judge": RIGHT, "stopping_judge": SAME_NUMBER}
    shares = [(0.2, 0.6), (0.6, 0.9)]
    results = [result(texts(less, 9, i), texts(more, 9, i + 9), judges) for i, (less, more) in enumerate(shares)]
    rates = [each["judge"]["win_rate_low"] for each in results]
    assert min(rates) > 0.5
    assert verdict(tmp_path, *results) == Verdict([], ["judge_exploitation", "length_drift", "falling_diversity"], [])


@pytest.mark.slow
def test_noise_raises_no_finding(tmp_path: Path) -> None:
    """Four rounds in which nothing changes."""
    judges = {"judge": LONG, "stopping_judge": RIGHT}
    found = [verdict(tmp_path, result(texts(0.5, 5, i), texts(0.5, 5, 100 + i), judges)) for i in range(4)]
    assert sum(map(len, map(names, found))) == 0


def test_without_a_stopping_judge_there_is_nothing_to_compare(tmp_path: Path) -> None:
    found = verdict(tmp_path, result(texts(0.5, 3, 1), texts(0.5, 9, 2), {"judge": LONG}))
    assert found.not_checked == ["judge_exploitation"]
    assert names(found) == ["length_drift"]


# Findings by hand

ROW: dict[str, Any] = dict.fromkeys(table.COLUMNS, math.nan)
BEFORE = ROW | {"round": 0, "chosen": 0, "tokens": 20.0, "tokens_low": 17.0, "tokens_high": 23.0}
BEFORE |= {"distinct": 0.6, "distinct_low": 0.57, "distinct_high": 0.63}
UNCHANGED = {"distinct_change": 0.0, "distinct_change_low": -0.03, "distinct_change_high": 0.03}
GOOD = {
    **BEFORE,
    **UNCHANGED,
    "round": 1,
    "chosen": 1,
    "win_rate": 0.7,
    "win_rate_low": 0.6,
    "win_rate_high": 0.8,
    "stopping_win_rate": 0.45,
    "stopping_win_rate_low": 0.35,
    "stopping_win_rate_high": 0.55,
    "gap": 0.25,
    "gap_low": 0.0,
    "gap_high": 0.5,
}


def of(**changes: Any) -> Verdict:
    return health.examine(pd.DataFrame([BEFORE, GOOD | changes]))


@pytest.mark.parametrize(
    ("name", "changes", "near", "sentence"),
    [
        (
            "judge_exploitation",
            {"gap_low": 0.01},
            {},
            "does not significantly (45.0%, 35.0% to 55.0%); the difference is 25.0%",
        ),
        (
            "judge_exploitation",
            {"gap_low": 0.01},
            {"gap_low": 0.01, "win_rate_low": 0.5},
            "(win rate 70.0%, 60.0% to 80.0%)",
        ),
        # The stopping judge sees a gain, too, if a smaller one.
        ("judge_exploitation", {"gap_low": 0.01}, {"gap_low": 0.01, "stopping_win_rate_low": 0.51}, "round 1"),
        # 25 (21 to 29) against 20 (17 to 23): 5 - sqrt(4^2 + 3^2) = 0
        (
            "length_drift",
            {"tokens": 25.1, "tokens_low": 21.1, "tokens_high": 29.1},
            {"tokens": 25.0, "tokens_low": 21.0, "tokens_high": 29.0},
            "from 20.0 to 25.1 tokens (difference +5.1, 95% interval +0.1 to +10.1)",
        ),
        (
            "length_drift",
            {"tokens": 14.9, "tokens_low": 10.9, "tokens_high": 18.9},
            {"tokens": 15.0, "tokens_low": 11.0, "tokens_high": 19.0},
            "(difference -5.1, 95% interval -10.1 to -0.1)",
        ),
        # A tenth of 0.6 is 0.06.
        (
            "falling_diversity",
            {"distinct_change": -0.061, "distinct_change_low": -0.1, "distinct_change_high": -0.01},
            {"distinct_change": -0.06, "distinct_change_low": -0.1, "distinct_change_high": -0.01},
            "6.1 points less of the bigrams in validation answers are different, at equal lengths (95% interval 1.0 to 10.0); "
            "before the rounds, 60.0% were",
        ),
        (
            "falling_diversity",
            {"distinct_change": -0.07, "distinct_change_low": -0.1, "distinct_change_high": -0.01},
            {"distinct_change": -0.07, "distinct_change_low": -0.14, "distinct_change_high": 0.0},
            "7.0 points",
        ),
    ],
)
def test_each_finding_is_made_alone_and_not_in_a_slightly_better_round(
    name: str, changes: dict[str, Any], near: dict[str, Any], sentence: str
) -> None:
    (finding,) = of(**changes).findings
    assert finding.name == name
    assert sentence in finding.sentence
    assert of(**near).findings == []


def test_a_certain_but_small_change_of_length_is_no_finding() -> None:
    sure = {"tokens_low": 20.0, "tokens_high": 20.0}
    small, large = ({"tokens": value, "tokens_low": value, "tokens_high": value} for value in (22.0, 22.1))
    for changes, expected in ((small, []), (large, ["length_drift"])):
        assert names(health.examine(pd.DataFrame([BEFORE | sure, GOOD | changes]))) == expected


def test_length_and_diversity_are_those_of_the_chosen_policy() -> None:
    drifted = GOOD | {"round": 2, "chosen": 0, "tokens": 90.0, "tokens_low": 89.0, "tokens_high": 91.0}
    assert health.examine(pd.DataFrame([BEFORE, GOOD, drifted])).findings == []
    none = health.examine(pd.DataFrame([BEFORE | {"chosen": 1}, drifted]))
    assert none.not_checked == ["length_drift", "falling_diversity"]


# Numbers


def test_distinct_by_hand() -> None:
    """Bigrams ab, ab, cd: 2/3 differ. Without one answer: 1, 1 and 1/2; their squared deviations sum to 1/6."""
    error = math.sqrt(2 / 3 / 6)
    found = comparing.distinct([[1, 2], [1, 2], [3, 4]])
    assert found["distinct"] == pytest.approx(2 / 3)
    assert error == pytest.approx(1 / 3)
    assert (found["distinct_low"], found["distinct_high"]) == (0.0, 1.0)  # 4.3 errors reach further
    many = comparing.distinct([[i, i + 1, 7, 8] for i in range(0, 400, 4)])  # i i+1, i+1 7, 7 8: 201 of 300
    assert many["distinct"] == pytest.approx(201 / 300)
    assert many["distinct_high"] - many["distinct_low"] < 0.01
    assert comparing.distinct([[1], []]) == {}
    assert comparing.distinct([[1, 2], [3]]) == {"distinct": 1.0, "distinct_low": 0.0, "distinct_high": 1.0}


def test_distinct_without_an_answer_keeps_what_others_have_too() -> None:
    """12 21 12, 34 and 34: 3 of 5 bigrams differ; without each: 1 of 2, 3 of 4, 3 of 4."""
    found = comparing._with_and_without_each([[1, 2, 1, 2], [3, 4], [3, 4]])
    assert found is not None
    assert (found[0], found[1].tolist()) == (0.6, [0.5, 0.75, 0.75])


def test_the_change_of_distinct_is_that_at_equal_lengths() -> None:
    """ab bc ab against bc cb: two bigrams of each are left, all different before. Then ab ab: 1/2."""
    assert comparing.distinct([[1, 2, 3, 1, 2]])["distinct"] == 0.75
    assert comparing.distinct_change([[1, 2, 3, 1, 2]], [[2, 3, 2]])["distinct_change"] == 0.0
    longer = [[i, 7, 8, 9] for i in range(50)], [[i, 7, 8, 9, 7, 8, 9, 7, 8, 9] for i in range(50)]
    assert comparing.distinct(longer[1])["distinct"] < comparing.distinct(longer[0])["distinct"]
    same = {"distinct_change": 0.0, "distinct_change_low": 0.0, "distinct_change_high": 0.0}
    assert comparing.distinct_change(*longer) == same
    fell = comparing.distinct_change(*([[*range(i, i + 3)] for i in range(0, 150, 3)], [[0, 1, 2]] * 50))
    assert fell["distinct_change"] == 2 / 100 - 1
    assert fell["distinct_change_high"] < -0.9


def test_changes_of_rounds_add_up() -> None:
    """-0.04 (-0.07 to -0.01) twice: -0.08, and sqrt(2 * 0.03^2) = 0.042 to either side; either alone is no finding."""
    fell = {"distinct_change": -0.04, "distinct_change_low": -0.07, "distinct_change_high": -0.01}
    rounds = [BEFORE, GOOD | fell | {"chosen": 0}, GOOD | fell | {"round": 2}]
    (finding,) = health.examine(pd.DataFrame(rounds)).findings
    assert "after round 2, 8.0 points less" in finding.sentence
    assert "(95% interval 3.8 to 12.2)" in finding.sentence
    assert of(**fell).findings == []


def test_agreement_and_gap_by_hand() -> None:
    """Win, win, tie, loss by one judge; win, loss, loss and unread by the other: of three contests they agree on one, and the
    first gives (1 + 1 + 1/2) / 3, the other 1 / 3."""
    contests = judging.head_to_head(
        *map(answered, (["a"] * 4, ["b"] * 4)), {f"p{i}": Asked([], None) for i in range(4)}
    )
    one, other = (
        contests[["decoding"]].assign(outcome=outcomes)
        for outcomes in (["win", "win", "tie", "loss"], ["win", "loss", "loss", "unread"])
    )
    found = comparing.rates(contests, {"judge": one, "stopping_judge": other})["agreement"]
    assert (found["n"], found["agreement"], found["gap"]) == (3, pytest.approx(1 / 3), pytest.approx(0.5))
    assert found["gap_low"] < 0 < found["gap_high"]
    only_last = other.assign(outcome=["unread", "unread", "unread", "win"])
    all_but_last = one.assign(outcome=["win", "win", "win", "unread"])
    assert "agreement" not in comparing.rates(contests, {"judge": all_but_last, "stopping_judge": only_last})


def test_the_table_has_a_row_per_round_and_one_before(tmp_path: Path) -> None:
    first = result(["7 a b", "8"], ["7 a c", "7 a b c d e"], {"judge": LONG, "stopping_judge": RIGHT})
    path = tmp_path / "table.csv"
    table.write(path, table.rows({1: first, 2: first | {"go": False}, 3: None}, 1))
    found = pd.read_csv(path)
    assert found["round"].tolist() == [0, 1, 2]
    assert found["chosen"].tolist() == [0, 1, 0]
    assert found["good"].tolist()[1:] == [1, 0]
    assert found["tokens"].tolist() == [2.0, 4.5, 4.5]
    assert found["win_rate"].isna().tolist() == [True, False, False]
    assert found["win_rate"][1] == 0.75  # one answer became long enough; two are too short
    assert found["stopping_win_rate"][1] == 0.75
    assert found["agreement"][1] == 1.0
    assert found["kl_to_reference"].tolist() == [1.0] * 3
    assert found[["prompts_kept", "prompts_rejected", "pairs"]].to_numpy()[1].tolist() == [7, 2, 8]
    assert [row["chosen"] for row in table.rows({1: first, 2: first}, 2)] == [0, 0, 1]
    assert [row["chosen"] for row in table.rows({1: first}, 0)] == [1, 0]
    table.write(path, table.rows({1: None}, 0))
    assert path.read_text() == ",".join(table.COLUMNS) + "\n"
