"""Names and values are rewritten so that MLflow accepts them: checked with MLflow's own validators."""

import json
from collections.abc import Mapping
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from prefdag.tracking import keys

PARTS = st.lists(st.text(max_size=40) | st.sampled_from(["", ".", "..", "...", "a", "_", "a b"]), max_size=8)
KEYS = st.text(max_size=300) | PARTS.map("/".join) | PARTS.map(".".join)
VALUES = st.text(max_size=60) | st.none() | st.booleans() | st.floats() | st.lists(st.text(max_size=20), max_size=5)


def check(key: str, value: str) -> None:
    """Raise `MlflowException` if MLflow would refuse or shorten a parameter, or a metric of the same name."""
    from mlflow.utils.validation import _validate_metric, _validate_param

    param = _validate_param(key, value)
    assert (param.key, param.value) == (key, value), "MLflow shortens it"
    _validate_metric(key, 1.0, 0, 0)
    assert key
    assert not {"\n", ":"} & set(key), "one is let through by a lax pattern, the other is refused on Windows"


@pytest.mark.slow
@given(st.dictionaries(KEYS, VALUES, max_size=12))
@example({"": "", "_": "", "?": "", "/": "", ".": "", "//": "x" * 7000})
@example({"a?b": 1, "a_b": 2, "a!b": 3})
@example({"x" * 251: 1, "x" * 252: 2, "x" * 300: [1] * 6000})
@example({"a\n": 1, "a": 2, "..a": 3, "a/../b": 4, "C:": 5})
def test_mlflow_accepts_every_parameter_and_none_is_lost(params: Mapping[str, Any]) -> None:
    sent = keys.parameters(params)
    assert len(sent) == len(params)
    for key, value in sent.items():
        check(key, value)
    kept = {key: value if isinstance(value, str) else json.dumps(value) for key, value in params.items()}
    for key, value in kept.items():
        if keys.accepted(key) == key:
            assert sent[key] == value or len(value) > keys.VALUE_LENGTH
    assert keys.parameters(sent) == sent, "a parameter that was rewritten stays as it is"


@pytest.mark.slow
@given(st.lists(KEYS, max_size=12), st.integers(0, 12))
def test_a_metric_has_the_same_name_whatever_comes_later(names: list[str], cut: int) -> None:
    first, whole = keys.Names(), keys.Names()
    assert [first(key) for key in names[:cut]] == [whole(key) for key in names][:cut]
    assert len({whole(key) for key in names}) == len(set(names))
    for key in names:
        check(whole(key), "")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("heldout/rewards/accuracy", "heldout/rewards/accuracy"),
        ("files.lang=en/split=train/part-0 (1).parquet", "files.lang_en/split_train/part-0 _1_.parquet"),
        ("größe", "größe"),
        ("", "_"),
        ("..", "__"),
        ("../a/./b//c/", "__/a/_/b/_/c/_"),
    ],
)
def test_refused_characters_become_an_underscore(key: str, name: str) -> None:
    assert keys.accepted(key) == name


@pytest.mark.slow
def test_long_values_that_differ_stay_different() -> None:
    one, other = (keys.parameters({"files": ["x" * 7000 + end]})["files"] for end in "ab")
    assert len(one) == len(other) == keys.VALUE_LENGTH
    assert one != other
    assert one[:5000] == other[:5000]
    assert "... (7005 characters, SHA-256 " in one
