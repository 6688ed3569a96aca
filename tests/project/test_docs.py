"""The docs name only existing files, `make` targets, `prefdag` commands and links."""

import ast
import functools
import re
import subprocess
from collections.abc import Iterator, Set
from pathlib import Path

import pytest
from paths import ROOT
from typer.main import get_command

from prefdag.cli import app

PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        ROOT / "SECURITY.md",
        *(ROOT / "docs").rglob("*.md"),
    ]
)
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]
# export by `prefdag export`, labels by people
WRITTEN_BY_STAGES = ("data/", "models/", "reports/", "export/", "labels/")
TO_LABEL = {"comparisons.json", "to_label.csv", "label_studio.json", "records.json"}
MADE_BY_RUNS = {
    "dvc.lock",
    "adapter_config.json",
    "metrics.json",
    "history.csv",
    "validation.csv",
    "model_card.md",
    *TO_LABEL,
}

each_page = pytest.mark.parametrize("page", PAGES, ids=IDS)


def code(text: str) -> list[str]:
    """Code spans and the lines of code blocks."""
    blocks = re.findall(r"^```.*?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [*re.findall(r"`([^`\n]+)`", prose), *(line for block in blocks for line in block.splitlines())]


@functools.cache
def files() -> frozenset[str]:
    """Every file of the project that Git tracks or would add, relative to the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return frozenset(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines())


def missing_files(text: str, known: Set[str]) -> list[str]:
    """Names of files in `text` that do not exist. A name without a folder may be in any folder."""
    pattern = r"(?<![\w/.:*<{-])[\w./-]*\w\.(?:py|ya?ml|md|toml|lock|sh|csv|jsonl?)(?![\w/*-])"
    names = {name for span in code(text) for name in re.findall(pattern, span)}
    bare = {name.rpartition("/")[2] for name in known}
    return sorted(
        name
        for name in (name.removeprefix("./") for name in names)
        if not name.startswith((*WRITTEN_BY_STAGES, "../"))
        and name not in MADE_BY_RUNS
        and not (name in known or ("/" not in name and name in bare))
    )


def missing_commands(text: str, targets: set[str], commands: set[str]) -> list[str]:
    """`make` targets and `prefdag` commands in `text` that do not exist."""
    spans = code(text)
    made = {name for span in spans for name in re.findall(r"(?:^|&& |[$] )make ([a-z][a-z0-9-]*)", span)}
    run = {name for span in spans for name in re.findall(r"(?:^|&& |[$] |/)prefdag ([a-z][a-z-]*)", span)}
    return [f"make {name}" for name in sorted(made - targets)] + [f"prefdag {name}" for name in sorted(run - commands)]


def broken_links(page: Path) -> list[str]:
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", page.read_text("utf-8"))
    paths = (url.partition("#")[0] for pair in links for url in pair if url and "://" not in url)
    return sorted({path for path in paths if path and not (page.parent / path).exists()})


@each_page
def test_every_named_file_exists(page: Path) -> None:
    assert missing_files(page.read_text("utf-8"), files()) == []


@each_page
def test_every_named_command_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    commands = set(getattr(get_command(app), "commands", {}))
    assert {"repro", "test"} <= targets
    assert {"profile", "chat"} <= commands
    assert missing_commands(page.read_text("utf-8"), targets, commands) == []


@each_page
def test_every_relative_link_has_a_target(page: Path) -> None:
    assert broken_links(page) == []


def test_missing_files_commands_and_links_are_found(tmp_path: Path) -> None:
    text = "See `a/b.py`, `b.py`, `gone.py`, `a/gone.yaml:3`, `data/x.csv` and not plain.py.\n```\n./a/b.py c.sh\n```\n"
    assert missing_files(text, {"a/b.py"}) == ["a/gone.yaml", "c.sh", "gone.py"]
    text = "`make it`, `make tea`, make no mistake; `prefdag chat`\n```\n$ prefdag run && make tea\n```\n"
    assert missing_commands(text, {"it"}, {"chat"}) == ["make tea", "prefdag run"]
    page = tmp_path / "page.md"
    page.write_text('[a](page.md#x) [b](gone.md) [c](https://localhost/x) <img src="gone.png"> [d](#here)')
    assert broken_links(page) == ["gone.md", "gone.png"]


def test_the_page_of_losses_matches_the_code() -> None:
    from prefdag.project.losses_page import page

    assert (ROOT / "docs" / "losses.md").read_text("utf-8") == page(), "run `make docs`"


def test_the_page_of_losses_is_complete() -> None:
    """The page has a formula, a paper and every option. The first two come from the loss's docstring."""
    from prefdag.dpo.losses import LOSSES
    from prefdag.project.losses_page import options, page

    rows = re.findall(r"^\| (\w+) \| ([^|]*(?:\\\|[^|]*)*) \| .* \| (arXiv:[^|]+) \|$", page(), re.MULTILINE)
    assert [name for name, *_ in rows] == list(LOSSES)
    assert all(len(formula) > 5 for _, formula, _ in rows)
    for option in options():
        assert re.search(rf"^\| {option} \| \w+", page(), re.MULTILINE), option


@pytest.mark.parametrize(
    ("study", "function"),
    [("cifar10", "table"), ("origin", "page"), ("rounds", "table"), ("few_shot", "table")],
)
def test_a_study_shows_its_own_results(study: str, function: str) -> None:
    """The tables in docs/STUDY.md match its results file."""
    import runpy

    made = runpy.run_path(str(ROOT / "benchmarks" / f"{study}.py"))[function]()
    assert made in (ROOT / "docs" / f"{study}.md").read_text("utf-8")


def test_the_commands_of_reliability_select_tests() -> None:
    """The files exist, and the words are in the name of one of their tests, which is slow if the command is for slow ones."""
    page = (ROOT / "docs" / "reliability.md").read_text("utf-8")
    commands = re.findall(r"`pytest (?:-m (\S+|\"[^`\"]+\") )?((?:tests/\S+? ?)+)(?: ?-k (\w+))?`", page)
    assert len(commands) > 20
    for mark, names, word in commands:
        slow = [is_slow for name in names.split() for test, is_slow in marks_of(ROOT / name) if word in test]
        selected = {"slow": slow, "": [not each for each in slow]}.get(mark, [True for _ in slow])
        assert any(selected), (mark, names, word)


def marks_of(file: Path) -> Iterator[tuple[str, bool]]:
    """Each test function of a file, and whether it is marked as slow, alone or with all of its file."""
    tree = ast.parse(file.read_text("utf-8"))
    whole = any(isinstance(node, ast.Assign) and "mark.slow" in ast.unparse(node) for node in tree.body)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            marks = map(ast.unparse, node.decorator_list)
            yield node.name, whole or "tests/pipeline" in file.as_posix() or "pytest.mark.slow" in marks
