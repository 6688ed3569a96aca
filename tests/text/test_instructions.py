"""Instructions that a program can check: how a prompt states them, and when an answer follows them."""

import math
from typing import Any

import pytest

from prefdag.config.verify import InstructionsCheck, VerifyJudge
from prefdag.text.evaluation import verify
from prefdag.text.evaluation.instructions import found, sentences


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Rain falls.", 1),
        ("Rain falls. It is wet!", 2),
        ("Does it rain? Yes... It does.", 3),
        ('He said "Rain." Then he left.', 2),
        ("Rain falls. It", None),  # cut
        ("It is 3.5 degrees.", 1),
        ("  Rain falls. \n", 1),
        ("Rain", None),
        ("", None),
    ],
)
def test_sentences(text: str, count: int | None) -> None:
    assert sentences(text) == count


@pytest.mark.parametrize(
    ("prompt", "right", "wrong"),
    [
        ("Answer in exactly two sentences.", "Rain falls. It is wet.", "Rain falls."),
        ("answer in EXACTLY 1 sentence", "Rain falls.", "Rain falls. It"),
        ("Use at most three words.", "rain is wet", "the rain is wet"),
        ("Use at most 3 words.", "rain", ""),
        ("Use at least 3 words.", "rain is wet", "rain falls"),
        ("End your answer with a question.", "Rain. And you? ", "And you? Rain."),
        ("Put your whole answer in double quotes.", '"Rain falls."', '"Rain" falls'),
        ("Put your whole answer in double quotes.", "“Rain”", '"Rain" and "sun"'),
        ("Put your whole answer in double quotes.", '"a"', '"'),
        ("Do not use any commas.", "Rain falls.", "Rain, snow"),
        ("Use no commas.", "Rain", " "),
        ('Use the word "rain".', "RAIN falls.", "It is a brainy idea."),
    ],
)
def test_an_instruction(prompt: str, right: str, wrong: str) -> None:
    assert [[each.followed for each in found(f"Describe rain. {prompt}", answer)] for answer in (right, wrong)] == [
        [True],
        [False],
    ]


def test_prompts_without_an_instruction() -> None:
    assert not list(found("Which two sentences have commas and quotes? Use many words.", "Both."))


def asked(*contents: str) -> verify.Question:
    messages: list[dict[str, Any]] = [{"role": "user", "content": content} for content in contents]
    return verify.Question("p0", messages, None)


def test_the_score_is_the_share_of_the_instructions_in_the_last_message() -> None:
    config = VerifyJudge(kind="verify", checks=[InstructionsCheck(kind="instructions")])
    score = verify.scorer(config, {}, "params.yaml: judge_text.judge.checks")

    both = asked("Use at least 50 words.", "Describe rain. Use at most 2 words. Use no commas.")
    assert [score(both, answer)[0].value for answer in ("wet", "wet, cold", "wet, cold, grey")] == [1.0, 0.5, 0.0]
    assert score(both, "wet, cold")[0].reason == "at most 2 words: followed, Use no commas: not followed"
    (none,) = score(asked("Describe rain."), "wet")
    assert math.isnan(none.value)
    assert "no instruction" in none.reason
