"""Bars for loops over many things: none for a short loop, and a line of its own for the error that ends a long one."""

import sys
from collections.abc import Iterator
from itertools import count

import pytest

from prefdag.lifecycle.progress import tracked


def test_a_short_loop_has_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(tracked(range(3), "row", "copies", 3)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("total", "expected"), [(None, "copies: 3row"), (4, "copies:  75%")])
def test_a_long_loop_has_one_that_ends_with_the_loop(
    total: int | None, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = count(step=20)
    monkeypatch.setattr("tqdm.std.time", lambda: next(seconds))

    def rows() -> Iterator[int]:
        yield from range(4)

    def divide() -> None:
        for row in tracked(rows(), "row", "copies", total):
            1 / (3 - row)

    with pytest.raises(ZeroDivisionError):
        divide()
    print("error", file=sys.stderr)
    *_, bar, error, end = capsys.readouterr().err.replace("\r", "\n").split("\n")
    assert bar.startswith(expected)
    assert (error, end) == ("error", "")
