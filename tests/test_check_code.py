"""Code that changed since hash_code read it is refused."""

from pathlib import Path

import pytest

from prefdag.check_code import check_code
from prefdag.dependencies import imports
from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import read_json
from stages import hash_code

MODULE = Path("prefdag/dpo/losses.py")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that imports a module, which reads a template; another one imports neither."""
    monkeypatch.chdir(tmp_path)
    imports.cache_clear()
    Path("prefdag/dpo/templates").mkdir(parents=True)
    Path("stages").mkdir()
    Path("stages/__init__.py").touch()
    Path("stages/dpo_text.py").write_text("from prefdag.dpo import losses\n")
    Path("stages/report.py").write_text("")
    MODULE.write_text('"""Losses."""\nNAME = "templates"\n')
    Path("prefdag/dpo/templates/page.html").write_text("page")
    Path("dvc.yaml").write_text("stages: {dpo_text: {cmd: a}, report: {cmd: b}}")
    hash_code.main()


def test_each_stage_has_the_hashes_of_its_own_code() -> None:
    assert sorted(path.name for path in hash_code.CODE.iterdir()) == ["dpo_text.json", "report.json"]
    of_dpo = read_json(hash_code.CODE / "dpo_text.json")
    assert list(of_dpo) == [str(MODULE), "prefdag/dpo/templates", "stages/dpo_text.py"]
    assert list(read_json(hash_code.CODE / "report.json")) == ["stages/report.py"]
    assert read_json(hash_code.FILES).keys() == of_dpo.keys() | {"stages/report.py"}
    assert read_json(hash_code.FILES)[str(MODULE)] != of_dpo[str(MODULE)]


def test_the_code_as_it_was_is_accepted() -> None:
    check_code("dpo_text")


def test_a_comment_is_accepted_and_changes_no_hash() -> None:
    before = (hash_code.CODE / "dpo_text.json").read_bytes()
    MODULE.write_text('"""Losses, by their names."""\n\nNAME = "templates"  # of pages\n')
    check_code("dpo_text")
    hash_code.main()
    assert (hash_code.CODE / "dpo_text.json").read_bytes() == before


@pytest.mark.parametrize("path", [MODULE, Path("prefdag/dpo/templates/page.html"), Path("stages/dpo_text.py")])
def test_an_edit_is_refused_until_it_is_hashed(path: Path) -> None:
    path.write_text(path.read_text() + "EDITED = 'templates'\n")
    name = "prefdag/dpo/templates" if path.suffix == ".html" else str(path)
    with pytest.raises(DataError, match=f"^{name}: changed since hash_code read it; `dvc repro` or"):
        check_code("dpo_text")
    check_code("report")
    hash_code.main()
    check_code("dpo_text")


def test_a_removed_module_is_refused() -> None:
    MODULE.unlink()
    imports.cache_clear()
    with pytest.raises(DataError, match=f"^{MODULE}: changed"):
        check_code("dpo_text")


def test_without_hashes_nothing_is_checked() -> None:
    MODULE.write_text("EDITED = True\n")
    hash_code.FILES.unlink()
    check_code("dpo_text")


@pytest.mark.parametrize("path", [hash_code.FILES, hash_code.CODE / "dpo_text.json"])
@pytest.mark.parametrize("content", ["", "[", "[]", '{"a": 1}', "null"])
def test_broken_hashes_are_named(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(DataError, match=f"^{path}: "):
        check_code("dpo_text")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"X = (\n", "line 1: not Python ('(' was never closed)"),
        (b"X = 1\n  Y = 2\n", "line 2: not Python (unexpected indent)"),
        (b"X = '\xff'\n", "not Python ('utf-8' codec can't decode byte 0xff in position 5: invalid start byte)"),
        (b"X = 1\0\n", "not Python (source code string cannot contain null bytes)"),
    ],
)
def test_a_module_that_is_not_python_is_named(content: bytes, message: str) -> None:
    before = hash_code.FILES.read_bytes()
    MODULE.write_bytes(content)
    imports.cache_clear()
    with pytest.raises(DataError) as error:
        hash_code.main()
    assert str(error.value) == f"{MODULE}: {message}"
    assert hash_code.FILES.read_bytes() == before


def test_a_relative_import_is_named() -> None:
    Path("stages/dpo_text.py").write_text("X = 1\nfrom .own import Y\n")
    imports.cache_clear()
    with pytest.raises(DataError, match=r"^stages/dpo_text\.py: line 2: relative import; name the module in full$"):
        hash_code.main()


def test_an_unfinished_script_of_no_stage_stops_nothing() -> None:
    Path("stages/draft.py").write_text("X = (\n")
    hash_code.main()
    check_code("dpo_text")
    Path("dvc.yaml").write_text("stages: {draft: {cmd: a}}")
    with pytest.raises(DataError, match=r"^stages/draft\.py: line 1: not Python"):
        hash_code.main()


def test_a_script_has_hashes_before_it_is_a_stage() -> None:
    """dvc.yaml is no dependency of hash_code, since DVC allows that for no stage."""
    Path("stages/new.py").write_text("X = 1\n")
    hash_code.main()
    assert list(read_json(hash_code.CODE / "new.json")) == ["stages/new.py"]
