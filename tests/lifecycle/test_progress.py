"""Bars for loops over many things: none for a short loop, and a line of its own for the error that ends a long one."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from itertools import count

import pytest
from paths import ROOT

from prefdag.lifecycle.progress import tracked


def test_a_short_loop_has_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(tracked(range(3), "row", "copies", 3)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("total", "each", "expected"),
    [
        (None, 1, "copies: 3row "),
        (4, 1, r"copies:  75%.* 3/4 .*66.67s/row\]"),
        (4, 1000, r"copies:  75%.* 3000/4000 .*row/s\]"),
    ],
)
def test_a_long_loop_has_one_that_ends_with_the_loop(
    total: int | None, each: int, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = count(step=20)
    monkeypatch.setattr("tqdm.std.time", lambda: next(seconds))

    def rows() -> Iterator[int]:
        yield from range(4)

    def divide() -> None:
        for row in tracked(rows(), "row", "copies", total, each):
            1 / (3 - row)

    with pytest.raises(ZeroDivisionError):
        divide()
    print("error", file=sys.stderr)
    *_, bar, error, end = capsys.readouterr().err.replace("\r", "\n").split("\n")
    assert re.match(expected, bar)
    assert (error, end) == ("error", "")


@pytest.mark.slow
@pytest.mark.parametrize("columns", [0, 60])
def test_a_terminal_shows_it_whether_it_says_its_size_or_not(columns: int) -> None:
    """In containers, it often has 0 rows and 0 columns."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", columns and 20, columns, 0, 0))
    script = "from prefdag.lifecycle.progress import progress; [*map(str, progress(2, 'row', 'read', iterable=[1, 2]))]"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, stderr=its, check=True)
    os.close(its)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "read: 100%" in shown
    assert max(map(len, shown.split("\r"))) <= (columns or 80) + 1
