"""The judge that is a program: each check by hand, hostile answers and checks, and the stage."""

import json
import math
import time
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judging import contests_of, write_two_contests
from pydantic import TypeAdapter

from prefdag.check_params import check_params, load_params
from prefdag.config.verify import VerifyJudge
from prefdag.lifecycle.errors import DataError, ParamsError
from prefdag.runtime.yaml import read_yaml
from prefdag.text.evaluation import judge, verify
from prefdag.text.evaluation.verify import Question, Score, last_number
from stages import judge_text

WHERE = "params.yaml: judge_text.judge.checks"
VERIFY = TypeAdapter(VerifyJudge)


def judge_of(*checks: dict[str, Any], **options: Any) -> VerifyJudge:
    return VERIFY.validate_json(json.dumps({"kind": "verify", "checks": checks, **options}))


def score(check: dict[str, Any], answer: str, chosen: str | None = None, own: Any = None, **options: Any) -> Score:
    question = Question("p0", [{"role": "user", "content": "How many?"}], chosen)
    (found,) = verify.scorer(judge_of(check, **options), own or {}, WHERE)(question, answer)
    return found


# Numbers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12 + 30 = 42.", "42"),
        ("It costs $1,234.50, not more.", "1234.50"),
        ("1,2,3", "3"),
        ("12,345,678", "12345678"),
        ("-3", "-3"),
        ("−3", "-3"),
        ("5-3", "3"),
        ("(2)-3", "3"),
        ("x = -3", "-3"),
        ("a .5 share", "0.5"),
        ("6e-3", "0.006"),
        ("2e", "2"),
        ("50%", "50"),
        ("H2O", None),
        ("none", None),
        ("", None),
        ("10^30 is 1000000000000000000000000000001", "1000000000000000000000000000001"),
    ],
)
def test_the_last_number_of_a_text(text: str, number: str | None) -> None:
    assert last_number(text) == (None if number is None else Decimal(number))


@pytest.mark.slow
@given(st.decimals(allow_nan=False, allow_infinity=False, places=3), st.text())
def test_a_number_at_the_end_is_found_whatever_comes_before(number: Decimal, before: str) -> None:
    assert last_number(f"{before} = {number:f}.") == number
    assert last_number(f"{before} = {number:,f}.") == number


@given(st.text())
def test_any_text_has_a_number_or_none(text: str) -> None:
    number = last_number(text)
    assert number is None or number.is_finite()


def test_the_number_is_compared_with_that_of_the_chosen_response() -> None:
    assert score({"kind": "number"}, "So 42", "40 + 2 = 42.") == Score(1.0, "42, as 42")
    assert score({"kind": "number"}, "So 42.0", "42") == Score(1.0, "42.0, as 42")
    assert score({"kind": "number"}, "42 - 1 is 41", "42") == Score(0.0, "41, not 42")
    assert score({"kind": "number"}, "No idea", "42") == Score(0.0, "no number; expected 42")
    huge = "1000000000000000000000000000000"  # equal as floats
    assert score({"kind": "number"}, huge, f"{huge[:-1]}1").value == 0
    for chosen in ("Nobody knows", "", None):
        found = score({"kind": "number"}, "42", chosen)
        assert math.isnan(found.value)
        assert found.reason == "the chosen response has no number"


def test_the_tolerance_is_what_is_written() -> None:
    """As floats, 0.3 - 0.2 and 1.1 - 1.0 are on different sides of 0.1."""
    for answer, chosen in (("0.3", "0.2"), ("1.1", "1.0"), ("1.0", "1.1")):
        assert score({"kind": "number", "tolerance": 0.1}, answer, chosen).value == 1
        assert score({"kind": "number", "tolerance": 0.099}, answer, chosen).value == 0
    assert score({"kind": "number", "tolerance": 0.3}, "1.3", "1").value == 1  # as a float, 0.3 is a little less


# Regular expressions, JSON, lengths


def test_a_regular_expression_must_match_or_must_not() -> None:
    check = {"kind": "regex", "pattern": r"(?i)\bsorry\b"}
    assert score(check, "I am Sorry.") == Score(1.0, "matches at 5: 'Sorry'")
    assert score(check, "Sorrys") == Score(0.0, "no match")
    assert score(check | {"found": False}, "I am Sorry.") == Score(0.0, "matches at 5: 'Sorry'")
    assert score(check | {"found": False}, "Sorrys") == Score(1.0, "no match")


SCHEMA = {
    "type": "object",
    "required": ["answer"],
    "properties": {"answer": {"type": "integer"}},
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("answer", "value", "reason"),
    [
        ('{"answer": 4}', 1, "JSON that conforms to the schema"),
        (' {"answer": 4}\n', 1, "JSON that conforms to the schema"),
        ('{"answer": "4"}', 0, "$.answer: '4' is not of type 'integer'"),
        ("{}", 0, "$: 'answer' is a required property"),
        ('{"answer": 4, "why": 1}', 0, "$: Additional properties are not allowed ('why' was unexpected)"),
        ("The answer is 4", 0, "not JSON: Expecting value: line 1 column 1 (char 0)"),
        ('```json\n{"answer": 4}\n```', 0, "not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("", 0, "not JSON: Expecting value: line 1 column 1 (char 0)"),
        ('{"answer": NaN}', 0, "not JSON: NaN is none of its values"),
        ("[" * 100_000, 0, "not JSON: maximum recursion depth exceeded"),
        ("9" * 10_000, 0, "not JSON: Exceeds the limit (4300 digits)"),
    ],
)
def test_json_conforms_to_a_schema(answer: str, value: float, reason: str) -> None:
    found = score({"kind": "json", "schema": SCHEMA}, answer)
    assert found.value == value
    assert found.reason.startswith(reason)


def test_json_without_a_schema() -> None:
    assert score({"kind": "json"}, "[1]").value == 1
    assert score({"kind": "json"}, "[1").value == 0


@pytest.mark.slow
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=8))
def test_whatever_json_writes_is_json(value: Any) -> None:
    assert score({"kind": "json"}, json.dumps(value)).value == 1


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "https://127.0.0.1:9/schema.json"},  # never fetched
        {"$ref": "#/$defs/absent"},
        {"$ref": "#"},
    ],
)
def test_a_schema_that_cannot_be_applied_is_one_line(schema: dict[str, Any]) -> None:
    with pytest.raises(ParamsError) as caught:
        score({"kind": "json", "schema": schema}, '"text"')
    assert str(caught.value).startswith(f"{WHERE}.0.schema: cannot be applied (")
    assert str(caught.value).endswith("; fix it")


@pytest.mark.parametrize(
    ("unit", "limits", "values"),
    [
        ("words", {"min": 2, "max": 3}, [0, 1, 1, 0]),
        ("words", {"min": 3}, [0, 0, 1, 1]),
        ("words", {"max": 1}, [1, 0, 0, 0]),
        ("characters", {"min": 3, "max": 5}, [0, 1, 1, 0]),
    ],
)
def test_lengths_include_their_limits(unit: str, limits: dict[str, int], values: list[int]) -> None:
    answers = ["a", "a b", "a b c", "a b  c d"]
    assert [score({"kind": "length", "unit": unit, **limits}, answer).value for answer in answers] == values
    assert score({"kind": "length", "unit": unit, **limits}, "a b").reason == f"{ {'words': 2}.get(unit, 3) } {unit}"


# Functions of the user's own


FUNCTION = {"kind": "function", "function": "mine"}


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project whose stages/verify.py has a check `mine`."""
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "verify.py").write_text("CHECKS: dict = {'mine': len}")
    monkeypatch.chdir(tmp_path)


def test_a_function_gets_dialogue_answer_and_chosen_response(named: None) -> None:
    seen = []

    def mine(messages: Any, answer: str, chosen: str | None) -> Any:
        seen.append((messages[0]["content"], answer, chosen))
        messages.clear()  # does not reach the next answer
        return len(answer)

    scores = verify.scorer(judge_of(FUNCTION), {"mine": mine}, WHERE)
    question = Question("p0", [{"role": "user", "content": "How many?"}], "four")
    assert [scores(question, answer) for answer in ("two", "three")] == [[Score(3.0, "3")], [Score(5.0, "5")]]
    assert seen == [("How many?", "two", "four"), ("How many?", "three", "four")]


@pytest.mark.parametrize("value", [True, 1, 1.0, np.float32(1), np.bool_(True)])
def test_a_function_may_return_any_kind_of_number(value: Any, named: None) -> None:
    assert score(FUNCTION, "a", own={"mine": lambda *_: value}).value == 1


def failing(*_: Any) -> float:
    raise KeyError("first\nsecond")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (failing, r"KeyError: 'first\\nsecond' \(line \d+ of failing\); fix the function"),
        (lambda *_: None, "TypeError: it returned None; return a number"),
        (lambda *_: "1", "TypeError: it returned '1'; return a number"),
        (lambda *_: math.nan, "returned nan; return a finite number"),
        (lambda *_: math.inf, "returned inf; return a finite number"),
        (lambda *_: [1.0], "TypeError"),
        (lambda answer: 1, "TypeError"),
    ],
)
def test_a_function_that_fails_is_one_line(function: Any, message: str, named: None) -> None:
    with pytest.raises(ParamsError, match=message) as caught:
        score(FUNCTION, "a", own={"mine": function})
    assert str(caught.value).startswith("stages/verify.py: check 'mine' on an answer to p0: ")


def test_a_check_that_is_no_function_is_one_line(named: None) -> None:
    with pytest.raises(ParamsError, match=r"checks.0.function: 'mine' in CHECKS of stages/verify.py is no function"):
        verify.scorer(judge_of(FUNCTION), {"mine": 3}, WHERE)  # type: ignore[dict-item]


# Time


def endless(*_: Any) -> float:
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            continue


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "own"),
    [
        ({"kind": "regex", "pattern": "(a+)+$"}, {}),
        ({"kind": "json", "schema": {"pattern": "(a+)+$"}}, {}),
        (FUNCTION, {"mine": endless}),
    ],
)
def test_a_check_that_takes_too_long_is_one_line(check: dict[str, Any], own: Any, named: None) -> None:
    """A failed answer would depend on the machine."""
    answer = json.dumps("a" * 60 + "!")
    message = rf"^{WHERE}\.1: took more than 0.2 s on an answer to p0; make it faster, or raise timeout$"
    question = Question("p0", [], None)
    scores = verify.scorer(judge_of({"kind": "json"}, check, timeout=0.2), own, WHERE)
    with pytest.raises(ParamsError, match=message):
        scores(question, answer)
    assert score({"kind": "json"}, answer, timeout=0.05).value == 1
    time.sleep(0.1)  # the limit ended with the checks


# Several checks


def test_the_mean_of_several_checks() -> None:
    config = judge_of({"kind": "number", "name": "right"}, {"kind": "length", "unit": "words", "max": 2})
    one, other = [Score(1.0, "42, as 42"), Score(0.0, "3 words")], [Score(1.0, "42, as 42"), Score(1.0, "1 words")]
    assert verify.rewards(config, one, other) == (0.5, 1.0, "")
    assert verify.reason(config, one) == "right 1: 42, as 42; length 0: 3 words"


def test_in_order_the_first_check_that_differs_decides() -> None:
    checks = [{"kind": "number", "name": "right"}, {"kind": "length", "unit": "words", "max": 2, "name": "brief"}]
    config = judge_of(*checks, combine="in_order")

    def decide(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float, str]:
        return verify.rewards(config, [Score(value, "") for value in one], [Score(value, "") for value in other])

    assert decide((1, 0), (0, 1)) == (1, 0, "right")
    assert decide((1, 0), (1, 1)) == (0, 1, "brief")
    assert decide((1, 1), (1, 1)) == (1, 1, "")
    one, other, name = decide((math.nan, 0), (math.nan, 1))
    assert (math.isnan(one), math.isnan(other), name) == (True, True, "")


SCORES = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=3, max_size=3)


@pytest.mark.slow
@given(SCORES, SCORES, st.sampled_from(["mean", "in_order"]))
def test_swapped_answers_swap_their_rewards(one: list[float], other: list[float], combine: str) -> None:
    config = judge_of(*[{"kind": "json"}] * 3, combine=combine)
    first, second = ([Score(value, "") for value in scores] for scores in (one, other))
    a, b, name = verify.rewards(config, first, second)
    assert verify.rewards(config, second, first) == (b, a, name)
    if combine == "in_order":  # of lists, Python compares the first elements that differ
        assert (a > b, a < b) == (one > other, one < other)


# Verdicts


def test_verdicts_by_hand() -> None:
    """Right against wrong, the reverse, both right, both the same, and a prompt without an expected number."""
    pairs = contests_of([("41", "42"), ("42", "41"), ("42", "It is 42"), ("1", "1"), ("1", "2")])
    chosen = {"p0": "42", "p1": "42", "p2": "42", "p3": "42", "p4": None}
    verdicts = judge.by_checks(pairs, chosen, judge_of({"kind": "number", "name": "right"}), {})
    assert verdicts["outcome"].tolist() == ["win", "loss", "tie", "tie", "unread"]
    assert verdicts["decided_by"].tolist() == ["right", "right", "", "", ""]
    assert verdicts["reward_policy"].tolist()[:4] == [1, 0, 1, 0]
    assert verdicts["reason_reference"].tolist()[0] == "right 0: 41, not 42"
    assert verdicts["reason_policy"].tolist()[4] == "right nan: the chosen response has no number"
    rates = judge.win_rates(pairs, verdicts)["greedy"]
    assert {key: rates[key] for key in ("n", "wins", "ties", "losses", "unread")} == {
        "n": 4,
        "wins": 1,
        "ties": 2,
        "losses": 1,
        "unread": 1,
    }


def test_without_any_expected_number_there_is_no_verdict() -> None:
    with pytest.raises(DataError, match=r"judge: of the answered prompts, none has what a check needs"):
        judge.by_checks(contests_of([("1", "2")]), {"p0": "None"}, judge_of({"kind": "number"}), {})


# params.yaml


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"checks": []}, "checks: list should have at least 1 item"),
        (
            {"checks": [{"kind": "regex", "pattern": "("}]},
            "checks.0.pattern: no regular expression (missing ), untermin",
        ),
        ({"checks": [{"kind": "regex", "patern": "a"}]}, "checks.0.patern: unknown key; did you mean 'pattern'?"),
        (
            {"checks": [{"kind": "json", "schema": {"pattern": "("}}]},
            "checks.0.schema: no JSON schema ('(' is not a 'reg",
        ),
        ({"checks": [{"kind": "regexp"}]}, "checks.0: input tag 'regexp' found"),
        (
            {"checks": [{"kind": "number", "tolerance": -1}]},
            "checks.0.tolerance: input should be greater than or equal",
        ),
        (
            {"checks": [{"kind": "json", "schema": {"type": "objekt"}}]},
            "checks.0.schema: no JSON schema ('objekt' is not",
        ),
        ({"checks": [{"kind": "length", "unit": "words"}]}, "checks.0.max: missing, and so is min; set one"),
        ({"checks": [{"kind": "length", "unit": "words", "min": 3, "max": 2}]}, "checks.0.max: 2 is below min, 3"),
        (
            {"checks": [{"kind": "function", "function": "min"}]},
            "checks.0.function: no check 'min' in stages/verify.py; ",
        ),
        ({"checks": [{"kind": "function", "function": "min"}]}, "did you mean 'mine'?"),
        ({"checks": [{"kind": "json"}], "combine": "sum"}, "combine: input should be 'mean' or 'in_order', not 'sum'"),
    ],
)
def test_a_mistake_in_params_is_one_line(edit: dict[str, Any], message: str, named: None, root: Path) -> None:
    tree = read_yaml(root / "params.yaml")
    tree["judge_text"]["judge"] = {"kind": "verify", **edit}
    with pytest.raises(ParamsError) as caught:
        check_params(tree, Path("params.yaml"))
    assert str(caught.value).startswith("params.yaml: judge_text.judge.")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# The stage


def test_the_stage_judges_by_a_program(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages import verify as own

    monkeypatch.chdir(tmp_path)
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "verify.py").write_text("CHECKS = {'mine': len}")
    monkeypatch.setattr(own, "CHECKS", {"mine": lambda messages, answer, chosen: answer == chosen})
    write_two_contests(chosen=["b", "a rose"])
    params: Any = load_params(root / "params.yaml")
    config = replace(params.judge_text, judge=judge_of(FUNCTION))
    judge_text.main(0.1, "sigmoid", params.loss_options, config)
    assert pd.read_parquet(judge_text.VERDICTS)["outcome"].tolist() == ["win", "loss"]
    rates = json.loads(judge_text.WIN_RATE.read_text())
    assert list(rates) == ["verify"]
    assert rates["verify"]["greedy"]["win_rate"] == 0.5
    before = {path: path.read_bytes() for path in (judge_text.VERDICTS, judge_text.WIN_RATE)}
    judge_text.main(0.1, "sigmoid", params.loss_options, config)
    assert before == {path: path.read_bytes() for path in before}
    # A function that fails leaves nothing half-written.
    monkeypatch.setattr(own, "CHECKS", {"mine": failing})
    judge_text.VERDICTS.unlink()
    with pytest.raises(ParamsError, match=r"^stages/verify.py: check 'mine' on an answer to p0: KeyError"):
        judge_text.main(0.1, "sigmoid", params.loss_options, config)
    assert {path.name for path in Path("reports/text").iterdir()} == {"answers.parquet", "win_rate.json"}
