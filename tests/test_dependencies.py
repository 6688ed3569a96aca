"""What of a module counts when its code is hashed."""

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT

from prefdag.dependencies import code_hash, statements

SAME = {
    "a comment": ("x = 1\n", "# why\nx = 1  # here\n# end\n"),
    "a blank line": ("def f():\n    return 1\nx = 2\n", "def f():\n\n    return 1\n\n\nx = 2\n\n"),
    "the docstring of a module": ("x = 1\n", '"""A module.\n\n# not a comment\n"""\nx = 1\n'),
    "that of a class and a function": (
        "class A:\n    def f(self): return 1\n",
        'class A:\n    "Of A."\n    def f(self): return 1\n',
    ),
    "another docstring": ('def f():\n    """Old."""\n', 'def f():\n    """New,\n    longer."""  # with a comment\n'),
    "the docstring of an attribute": ("x: int\ny: int\n", 'x: int\n"""In tokens."""\ny: int\n'),
    "line breaks": ("f(a, b)\n", "f(\n    a,  # the first\n    b\n)\n"),
    "spaces": ("x = f(a+b)\n", "x  =  f( a + b )\n"),
    "the width of an indent": ("if a:\n  b\n", "if a:\n        b\n"),
    "line ends": ("x = 1\ny = 2\n", "x = 1\r\ny = 2\r\n"),
    "a missing end of line": ("x = 1\n", "x = 1"),
}
OTHER = {
    "a number": ("x = 1\n", "x = 2\n"),
    "an indent": ("if a:\n    b\n    c\n", "if a:\n    b\nc\n"),
    "a comment sign in a text": ("x = 'a # b'\n", "x = 'a # c'\n"),
    "a blank line in a text": ('x = """a\nb"""\n', 'x = """a\n\nb"""\n'),
    "a space in a text": ("x = 'a b'\n", "x = 'a  b'\n"),
    "two words for one": ("not_a\n", "not a\n"),
    "a text that is returned": ("def f():\n    return 'a'\n", "def f():\n    return 'b'\n"),
    "an f-string": ("f'{a}'\n", "f'{b}'\n"),
    "a text in an f-string": ("x = f'{a:{b}} # c {d!r}'\n", "x = f'{a:{b}} # e {d!r}'\n"),
    "a docstring that is read": ('"""A."""\nprint(__doc__)\n', '"""B."""\nprint(__doc__)\n'),
    "two statements for one": ("a\nb\n", "a\n"),
    "a statement in a branch": ("if a:\n    if b:\n        c\n    d\n", "if a:\n    if b:\n        c\n        d\n"),
    "a trailing comma": ("x = (a)\n", "x = (a,)\n"),
}


@pytest.mark.parametrize(("one", "two"), SAME.values(), ids=SAME)
def test_what_does_not_count(one: str, two: str) -> None:
    assert statements(one) == statements(two)


@pytest.mark.parametrize(("one", "two"), OTHER.values(), ids=OTHER)
def test_what_counts(one: str, two: str) -> None:
    assert statements(one) != statements(two)


def test_an_f_string_is_the_source_in_every_version_of_python() -> None:
    """Since 3.12, it is several tokens."""
    assert statements("x = f'a{b!r:>{c}} {f\"{d}\"}' + e\n") == "x\0=\0f'a{b!r:>{c}} {f\"{d}\"}'\0+\0e"


SOURCES = [path.read_text("utf-8") for path in sorted([*ROOT.glob("prefdag/**/*.py"), *ROOT.glob("stages/*.py")])]


@pytest.mark.slow
@given(st.sampled_from(SOURCES), st.data())
def test_an_edit_that_python_sees_counts(source: str, data: st.DataObject) -> None:
    """Python's own parser is the twin: where it finds other statements, so do we."""
    place = data.draw(st.integers(0, len(source)))
    removed = data.draw(st.integers(0, 3))
    edited = source[:place] + data.draw(st.text(" \n#'\"\\,:=(){}x0f", max_size=3)) + source[place + removed :]
    try:
        theirs = parsed(edited)
    except SyntaxError:
        return
    if theirs != parsed(source):
        assert statements(edited) != statements(source)


def parsed(source: str) -> str:
    """What Python makes of a module, without statements that are only a text."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            if isinstance(block := getattr(node, name, None), list):
                setattr(node, name, [one for one in block if not is_text(one)])
    return ast.dump(tree)


def is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str | bytes)
    )


def test_the_hash_of_a_file_that_is_no_module_is_of_its_bytes(tmp_path: Path) -> None:
    page, module = tmp_path / "page.css", tmp_path / "page.py"
    for path in (page, module):
        path.write_text("a {}\n" if path == page else "a = {}\n")
    before = [code_hash(path) for path in (page, module)]
    for path in (page, module):
        path.write_text(f"{path.read_text()}# a comment\n")
    assert [one == code_hash(path) for one, path in zip(before, (page, module), strict=True)] == [False, True]
