"""Whatever params.yaml has, it is accepted or refused with one line, and a hostile one costs neither time nor memory."""

import os
import random
import time
from pathlib import Path

import pytest
from paths import ROOT

from prefdag.check_params import load_params
from prefdag.lifecycle.errors import ParamsError
from prefdag.runtime import yaml
from prefdag.runtime.yaml import parse

BASE = (ROOT / "params.yaml").read_text("utf-8")
TOKENS = [
    b"\t",
    b": ",
    b"{",
    b"[",
    b"*a",
    b"&a ",
    b"!!binary ",
    b"!!set ",
    b"2026-11-29",
    b"9" * 5000,
    b"<<: ",
    b"\0",
    b"\xff",
    b"|",
]


def outcome(path: Path, content: bytes) -> str:
    """The refusal, or "" if it is accepted. Any other exception fails the test."""
    path.write_bytes(content)
    try:
        load_params(path)
    except ParamsError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_fuzzed_parameters_are_accepted_or_refused_with_one_line(tmp_path: Path) -> None:
    draw, refused = random.Random(0), 0
    for _ in range(150):
        content = bytearray(BASE.encode())
        for _ in range(draw.choice([1, 1, 2, 5])):
            place = draw.randrange(len(content))
            match draw.randrange(3):
                case 0:
                    content[place] = draw.randrange(256)
                case 1:
                    del content[place : place + draw.randrange(1, 30)]
                case 2:
                    content[place:place] = draw.choice(TOKENS)
        line = outcome(tmp_path / "params.yaml", bytes(content))
        refused += bool(line)
        assert "\n" not in line
        assert len(line) < 1000
    assert refused > 50


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("2026-11-29", "line 1: 2026-11-29 is a date"),
        ("2026-13-45", "line 1: 2026-13-45 is a date"),
        ('!!binary "AAAA"', "the tag !!binary is not allowed"),
        ("!!set {a, b}", "the tag !!set is not allowed"),
        ("!!omap [a: 1]", "the tag !!omap is not allowed"),
        ("!!python/object/apply:os.system [true]", "the tag !!python"),
        ("&a [*a]", "line 1: *a contains itself"),
        ("&a {b: *a}", "line 1: *a contains itself"),
        ("9" * 5000, "a number of 5,000 characters"),
        ("9" * 30, "an integer of more than 64 bits"),
        ("[" * 5000 + "]" * 5000, "more than 40 mappings and lists inside each other"),
        ("{a: " * 5000 + "}" * 5000, "more than 40 mappings and lists inside each other"),
        ("{[1, 2]: 3}", "a key must be text"),
        ('"\\0"', "the character U+0000 is not allowed"),
        ('!!int "abc"', "not valid YAML"),
        ("*undefined", "not valid YAML"),
    ],
)
def test_values_that_no_parameter_has_are_refused(value: str, message: str) -> None:
    with pytest.raises(ParamsError) as caught:
        parse(f"a: {value}\n", "params.yaml")
    assert str(caught.value).startswith("params.yaml: ")
    assert message in str(caught.value)


def test_a_bomb_is_refused_at_once() -> None:
    """Nine levels of nine aliases would be 387 million values."""
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for above, name in zip("abcdefgh", "bcdefghi", strict=True):
        bomb += f"{name}: &{name} [{', '.join([f'*{above}'] * 9)}]\n"
    begin = time.monotonic()
    with pytest.raises(ParamsError, match="repeat more than 10,000 values"):
        parse(bomb, "params.yaml")
    assert time.monotonic() - begin < 5


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with path.open("wb") as stream:
        stream.truncate(yaml.LARGEST + 1)
    with pytest.raises(ParamsError, match="larger than 8 MB"):
        yaml.read_yaml(path)


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    """Reading a named pipe would wait for a writer."""
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(ParamsError, match=f"{name}.yaml: not a file"):
            yaml.read_yaml(tmp_path / f"{name}.yaml")


def test_plain_aliases_and_merges_still_work() -> None:
    assert parse("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\n", "f") == {
        "a": {"x": 1},
        "b": {"x": 1},
        "c": {"x": 1, "y": 2},
    }
