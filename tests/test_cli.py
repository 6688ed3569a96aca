"""The command line: what it prints, where, and how it exits; the models and the tracking server are stood in for."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from prefdag import profiles, tracking
from prefdag.cli import app
from prefdag.config import load_params
from prefdag.errors import DataError, NumericError
from prefdag.profiles import Change

ROOT = Path(__file__).parents[1]


def prefdag(*arguments: str, typed: str = "") -> Result:
    return CliRunner().invoke(app, arguments, input=typed)


def test_help_names_every_command_and_starts_quickly() -> None:
    command = [sys.executable, "-X", "importtime", "-c", "from prefdag.cli import app; app(['--help'])"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in ("profile", "sync", "chat", "export"))
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "prefdag.errors" in imported
    assert not imported & {"torch", "transformers", "mlflow", "pandas", "numpy", "pydantic", "prefdag.config"}


def test_profile_shows_each_change_and_marks_what_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    source = {"kind": "hub", "files": ["a", "b"]}
    changes = [
        Change("beta", 0.3, 0.1, of_profile=False),
        Change("dpo_image.flip", False, True, of_profile=True),
        Change("format_pairs.max_pairs", None, 24, of_profile=True),
        Change("download_pairs.source", {"kind": "cifar10"}, source, of_profile=True),
    ]
    monkeypatch.setattr(profiles, "apply", {"mine": changes, "default": changes[:1]}.__getitem__)
    assert prefdag("profile", "mine").stdout.splitlines() == [
        "beta: 0.3 -> 0.1   (back to the committed value)",
        "dpo_image.flip: false -> true",
        "format_pairs.max_pairs: null -> 24",
        "download_pairs.source: {kind: cifar10} -> {kind: hub, files: [a, b]}",
        "params.yaml: 4 values changed; `dvc repro` runs what depends on them",
    ]
    assert prefdag("profile", "default").stdout.splitlines()[0] == "beta: 0.3 -> 0.1"


def test_profile_without_a_name_lists_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    lines = prefdag("profile").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(profiles.list_profiles())
    assert all(len(line.split()) > 3 for line in lines)


def test_an_unknown_profile_is_one_line_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = prefdag("profile", "tinny")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: profiles/tinny.yaml: no such profile; did you mean 'tiny'?\n"


@pytest.mark.parametrize(("error", "code"), [(DataError("a: b"), 2), (NumericError("a: b"), 3)])
def test_every_error_has_its_exit_code(error: Exception, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(tracking, "sync", fail)
    result = prefdag("sync")
    assert (result.exit_code, result.stderr) == (code, "error: a: b\n")


@pytest.mark.parametrize(("left", "code"), [(0, 0), (2, 1)])
def test_sync_fails_while_something_is_left(left: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "sync", lambda: SimpleNamespace(sent=5, left=left))
    result = prefdag("sync")
    assert (result.exit_code, result.stdout) == (code, f"sent 5, left {left}\n")
    assert result.stderr.count("\n") == code


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A folder with both models, in which `load_duo` gives a pair that repeats; what was asked, in order."""
    monkeypatch.chdir(tmp_path)
    for model in ("reference", "dpo_text"):
        Path("models", model).mkdir(parents=True)
    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    asked: list[Any] = []

    def answers(messages: list[dict[str, str]], max_new_tokens: int) -> tuple[str, str]:
        asked.append((messages, max_new_tokens))
        return "[red]no[/red]", f"yes, {messages[0]['content']}"

    def load_duo(*arguments: Any) -> SimpleNamespace:
        asked.append(arguments)
        return SimpleNamespace(answers=answers)

    monkeypatch.setitem(sys.modules, "prefdag.text.generate", SimpleNamespace(load_duo=load_duo))  # type: ignore[arg-type]
    return asked


def test_chat_asks_both_and_shows_brackets_as_they_are(trained: list[Any]) -> None:
    result = prefdag("chat", "--prompt", "blue?", "--max-new-tokens", "7")
    template = load_params(ROOT / "params.yaml").format_pairs.template
    assert trained[0] == (Path("models/reference"), Path("models/dpo_text"), template)
    assert trained[1:] == [([{"role": "user", "content": "blue?"}], 7)]
    header, _, answers = (line for line in result.stdout.splitlines() if line.strip())
    assert header.split() == ["reference", "policy"]
    assert answers.split("  ")[1].strip() == "[red]no[/red]"
    assert "yes, blue?" in answers


def test_chat_asks_every_question_afresh_until_an_empty_line(trained: list[Any]) -> None:
    result = prefdag("chat", typed="one\ntwo\n\nthree\n")
    assert result.exit_code == 0
    assert [[message["content"] for message in messages] for messages, _ in trained[1:]] == [["one"], ["two"]]


def test_chat_without_models_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = prefdag("chat", "--prompt", "blue?")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: models/reference: not found; run `dvc repro` first\n"
