"""Rows with known content in random formats and random extra columns: what was written comes out, or is named."""

import ast
import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefdag.formats.fields import Row, ignored, meaningful
from prefdag.formats.values import holds
from prefdag.lifecycle.errors import DataError
from prefdag.pairs.schema import read_pairs

pytestmark = pytest.mark.slow

Draw = st.DrawFn
COUNTER = iter(range(10**9))

ROLES = {"user": ["user", "human"], "assistant": ["assistant", "gpt"], "system": ["system"]}
EXTRA = st.sampled_from(
    [
        *(
            "system",
            "history",
            "tools",
            "images",
            "context",
            "thinking",
            "tool_calls",
            "id",
            "source",
            "split",
            "score_chosen",
        ),
        *(
            "input",
            "output",
            "question",
            "instruction",
            "messages",
            "prompt",
            "meta",
            "model",
            "label",
            "preference",
            "answers",
        ),
        *(
            "rank",
            "response",
            "completion",
            "generations",
            "rating",
            "annotator",
            "chosen_score",
            "votes_chosen",
            "weight",
        ),
    ]
)


def mark() -> str:
    """A text that occurs once, so that it can be found again."""
    return f"mark{next(COUNTER)}x"


@st.composite
def turns(draw: Draw, *roles: str) -> list[dict[str, Any]]:
    """Turns in one of the spellings, with content as text or as parts, and sometimes with more in them."""
    role_key, content_key = draw(st.sampled_from([("role", "content"), ("from", "value")]))
    spelled = []
    for role in roles:
        text: Any = mark()
        if content_key == "content" and draw(st.booleans()):
            text = [{"type": "text", "text": text}]
        turn = {role_key: draw(st.sampled_from(ROLES[role])), content_key: text}
        spelled.append(turn | draw(extras(["name", "weight", "reasoning_content", "tool_calls", "images", "thinking"])))
    return spelled


def extras(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    values = (
        st.builds(mark)
        | st.builds(lambda: [mark()])
        | st.builds(lambda: {"a": mark(), "b": [{"c": mark()}]})
        | st.none()
    )
    return st.dictionaries(st.sampled_from(names), values, max_size=2)


@st.composite
def records(draw: Draw) -> dict[str, Any]:
    prompt = draw(st.sampled_from([("user",), ("system", "user"), ("user", "assistant", "user")]))
    shape = draw(st.sampled_from(["text", "turns", "dialogue", "stored"]))
    before = draw(turns(*prompt))
    asked: Any = mark() if shape == "text" else before
    sides: dict[str, Any] = {}
    for side in ("chosen", "rejected"):
        reply = draw(turns("assistant"))
        sides[side] = {"text": mark(), "turns": reply, "dialogue": before + reply, "stored": json.dumps(reply)}[shape]
    if shape == "stored":
        asked = draw(st.sampled_from([json.dumps, repr]))(before)
    names = draw(
        st.sampled_from(
            [
                ("prompt", "chosen", "rejected"),
                ("conversations", "chosen", "rejected"),
                ("instruction", "chosen", "rejected"),
                ("question", "chosen", "rejected"),
                ("prompt", "chosen_response", "rejected_response"),
                ("prompt", "completion", ""),
            ]
        )
    )
    row = dict(zip(names, (asked, sides["chosen"], sides["rejected"]), strict=True))
    if "" in row:
        del row[""]
        row["label"] = draw(st.booleans())
    extra = draw(
        st.dictionaries(EXTRA, st.builds(mark) | st.builds(lambda: [[mark(), mark()]]) | st.integers(), max_size=3)
    )
    return {key: value for key, value in extra.items() if key not in row} | row


def marks(value: Any) -> set[str]:
    """Every mark in a value. Lists that are stored as text are part of it."""
    return set(re.findall(r"mark\d+x", json.dumps(value)))


def under(record: Any, name: str) -> set[str]:
    """The marks below a name such as chosen[].weight."""
    values = [record]
    for part in name.replace("[]", ".[]").split("."):
        lists = [value for value in values if isinstance(value, list)]
        objects = [value for value in values if isinstance(value, dict)]
        values = [item for value in lists for item in value] if part == "[]" else [value.get(part) for value in objects]
    return marks(values)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(records())
def test_what_was_written_comes_out_or_is_named(
    tmp_path_factory: pytest.TempPathFactory, record: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    (folder / "a.jsonl").write_text(json.dumps(record))
    try:
        pairs = read_pairs(folder, "auto")
    except DataError as error:
        assert "no known format" in str(error)  # noqa: PT017 - either outcome is right
        return
    (pair,) = pairs.astype("object").where(pairs.notna(), None).to_dict("records")
    if pair["fault"] is not None:
        assert pair["fault_column"]
        return
    decoded = {key: _decoded(value) for key, value in record.items()}
    named = set[str]().union(*(under(decoded, name) for name in pair["ignored"]))
    out = marks({key: value for key, value in pair.items() if key not in ("source", "id")})
    assert marks(record) <= out | named
    assert not any(meaningful(name.rpartition(".")[2].removesuffix("[]")) for name in pair["ignored"])


def _decoded(value: Any) -> Any:
    try:
        return json.loads(value)
    except (TypeError, ValueError):
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value


values = st.recursive(
    st.none() | st.integers() | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
)


@given(st.dictionaries(st.text("ab", min_size=1, max_size=2), values, max_size=4), st.data())
def test_the_unread_fields_are_the_rest(record: dict[str, Any], data: st.DataObject) -> None:
    """Reading some leaves, in any order: the fields that are left hold all other leaves, and none that was read."""
    row = Row(record)
    leaves = list(_leaves(record, ()))
    read = data.draw(st.lists(st.sampled_from(leaves), unique=True)) if leaves else []
    for path in read:
        field: Any = row
        for key in path:
            field = field[key] if isinstance(key, str) else field.items()[key]
        field.take()
    left = {leaf for field in row.unread() for leaf in _below(field.path, leaves)}
    assert left == {_spelled(path) for path in set(leaves) - set(read)}


def _leaves(value: Any, path: tuple[Any, ...]) -> Any:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    if not keys and holds(value):
        yield path
    for key in keys:
        yield from _leaves(value[key], (*path, key))


def _spelled(path: tuple[Any, ...]) -> str:
    parts = (f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return "".join(parts).removeprefix(".")


def _below(prefix: str, leaves: list[tuple[Any, ...]]) -> list[str]:
    spelled = [_spelled(leaf) for leaf in leaves]
    return [leaf for leaf in spelled if leaf == prefix or leaf.startswith((f"{prefix}.", f"{prefix}["))]


def test_a_parser_that_forgets_a_key_is_found() -> None:
    """The control of the two tests above."""
    row = Row({"prompt": "p", "chosen": [{"content": "c", "tool_calls": [1]}], "x": 1})
    row["prompt"].text()
    row["chosen"].items()[0]["content"].text()
    assert [field.path for field in row.unread()] == ["chosen[0].tool_calls", "x"]
    with pytest.raises(Exception, match="format plain does not read it"):
        ignored(row, "format plain")
