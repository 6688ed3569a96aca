"""Limits of prompts and responses: as given, or the length that holds 95% of the rows."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from format_settings import format_settings
from hypothesis import given
from hypothesis import strategies as st

from prefdag.lifecycle.errors import DataError, ParamsError
from prefdag.pairs.limits import Limits, check_window, choose, resolved
from prefdag.tokenizer.files import positions

AUTO = format_settings(
    template="chat",
    max_prompt_tokens="auto",
    max_response_tokens="auto",
    max_left_out=0.0,
    val_fraction=0.1,
    test_fraction=0.1,
)


def lengths(*values: int) -> Any:
    return np.array(values, dtype=np.int32)


def test_auto_is_the_length_that_holds_95_percent() -> None:
    prompts, responses = lengths(*range(1, 101)), lengths(*range(201, 221))
    assert choose(AUTO, prompts, responses, None) == Limits(95, 219)  # 95 of 100, 19 of 20
    assert choose(replace(AUTO, max_prompt_tokens=7), prompts, responses, None) == Limits(7, 219)
    assert choose(replace(AUTO, max_response_tokens=7), prompts, responses, None) == Limits(95, 7)


@pytest.mark.parametrize(
    ("prompt", "response", "budget", "window", "expected"),
    [
        (300, 300, 400, None, (200, 200)),
        (300, 300, 2048, 400, (200, 200)),
        (100, 900, 400, None, (100, 300)),  # each gets what the other one leaves
        (900, 100, 400, None, (300, 100)),
        (900, 900, 401, 9999, (201, 200)),
        (1, 1, 400, None, (1, 2)),  # a token and the end
    ],
)
def test_auto_stays_within_window_and_budget(
    prompt: int, response: int, budget: int, window: int | None, expected: tuple[int, int]
) -> None:
    params = replace(AUTO, max_auto_tokens=budget)
    assert choose(params, lengths(prompt), lengths(response), window) == expected


def test_a_given_limit_leaves_the_rest_of_the_window() -> None:
    params = replace(AUTO, max_prompt_tokens=90)
    assert choose(params, lengths(5), lengths(500), 100) == Limits(90, 10)
    assert choose(params, lengths(5), lengths(500), None) == Limits(90, 500)
    with pytest.raises(
        ParamsError, match=r"format_pairs.max_prompt_tokens: 90 of the model's 91 positions leave no room"
    ):
        choose(params, lengths(5), lengths(500), 91)


@pytest.mark.slow
@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=50),
    st.lists(st.integers(2, 5000), min_size=1, max_size=50),
    st.integers(4, 4096),
    st.none() | st.integers(4, 8192),
)
def test_auto_holds_its_promises_for_any_lengths(
    prompts: list[int], responses: list[int], budget: int, window: int | None
) -> None:
    limits = choose(replace(AUTO, max_auto_tokens=budget), lengths(*prompts), lengths(*responses), window)
    room = min(budget, window or budget)
    assert limits.max_prompt_tokens >= 1
    assert limits.max_response_tokens >= 2
    assert sum(limits) <= room
    check_window(limits, window)
    for limit, values in zip(limits, (prompts, responses), strict=True):
        held = sum(value <= limit for value in values) / len(values)
        assert held >= 0.95 or sum(limits) == room
        assert limit <= max(2, *values)


@pytest.mark.parametrize("key", ["max_position_embeddings", "n_positions"])
def test_limits_beyond_the_context_window_are_refused(tmp_path: Path, key: str) -> None:
    (tmp_path / "config.json").write_text(f'{{"{key}": 100}}')
    check_window(Limits(60, 40), positions(tmp_path))
    with pytest.raises(
        ParamsError, match=r"max_prompt_tokens \+ max_response_tokens is 101, .* has 100 positions; lower"
    ):
        check_window(Limits(60, 41), positions(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    check_window(Limits(60, 41), positions(tmp_path))


def test_later_stages_read_the_limits_that_were_chosen(tmp_path: Path) -> None:
    summary = tmp_path / "summary.json"
    with pytest.raises(DataError, match=r"summary.json: not found"):
        resolved(AUTO, summary)
    summary.write_text(json.dumps({"max_prompt_tokens": 12, "max_response_tokens": 34}))
    assert resolved(AUTO, summary) == (12, 34)
    assert resolved(replace(AUTO, max_prompt_tokens=9), summary) == (12, 34)
    assert resolved(replace(AUTO, max_prompt_tokens=9, max_response_tokens=8), tmp_path / "none") == (9, 8)
