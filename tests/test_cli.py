"""The command line: what it prints, where, and its exit codes. Models and tracking server are replaced by stand-ins."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from chat_models import byte_tokenizer
from dvc_lock import write_lock
from paths import ROOT
from typer.testing import CliRunner, Result

from prefdag.check_params import load_params
from prefdag.cli import app
from prefdag.lifecycle.errors import DataError, NumericError
from prefdag.project import profiles
from prefdag.project.profiles import Applied, ParameterChange
from prefdag.tracking import runs as tracking


def prefdag(*arguments: str, typed: str = "") -> Result:
    return CliRunner().invoke(app, arguments, input=typed)


@pytest.mark.slow
def test_help_names_the_commands_and_imports_little() -> None:
    command = [sys.executable, "-X", "importtime", "-c", "from prefdag.cli import app; app(['--help'])"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in ("profile", "pin", "sync", "chat", "export"))
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "prefdag.lifecycle.errors" in imported
    assert not imported & {"torch", "transformers", "mlflow", "pandas", "numpy", "pydantic", "prefdag.config.params"}


def test_profile_shows_each_change_and_marks_reverted_values(monkeypatch: pytest.MonkeyPatch) -> None:
    source = {"kind": "hub", "files": ["a", "b"]}
    changes = [
        ParameterChange("beta", 0.3, 0.1, of_profile=False),
        ParameterChange("dpo_image.flip", False, True, of_profile=True),
        ParameterChange("format_pairs.max_pairs", None, 24, of_profile=True),
        ParameterChange("download_pairs.source", {"kind": "cifar10"}, source, of_profile=True),
    ]
    backup = Path(".prefdag/params-0.yaml")
    applied = {"mine": Applied(changes, None), "default": Applied(changes[:1], backup)}
    monkeypatch.setattr(profiles, "apply", lambda name, force: applied[name])
    assert prefdag("profile", "mine").stdout.splitlines() == [
        "beta: 0.3 -> 0.1   (back to the committed value)",
        "dpo_image.flip: false -> true",
        "format_pairs.max_pairs: null -> 24",
        "download_pairs.source: {kind: cifar10} -> {kind: hub, files: [a, b]}",
        "params.yaml: 4 values changed; `dvc repro` runs what depends on them",
    ]
    assert prefdag("profile", "default").stdout.splitlines()[:2] == [
        "params.yaml as it was: .prefdag/params-0.yaml",
        "beta: 0.3 -> 0.1",
    ]


def test_the_version_is_that_of_the_package() -> None:
    result = prefdag("--version")
    assert (result.exit_code, result.stdout) == (0, f"prefdag {version('prefdag')}\n")


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
def test_sync_fails_if_runs_are_left(left: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "sync", lambda: SimpleNamespace(sent=5, left=left))
    result = prefdag("sync")
    assert (result.exit_code, result.stdout) == (code, f"sent 5, left {left}\n")
    assert result.stderr.count("\n") == code


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A folder with stand-ins for both models. The list has the arguments of loading, then every prompt with its options."""
    monkeypatch.chdir(tmp_path)
    for model in ("reference", "policy"):
        Path("models", model).mkdir(parents=True)
    Path("models/reference/config.json").write_text('{"max_position_embeddings": 300}')
    write_lock(Path("models/reference"), Path("models/policy"))
    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    tokenizer = byte_tokenizer(tmp_path / "tokenizer")
    calls: list[Any] = []

    class ReferenceAndPolicy(NamedTuple):
        reference: str
        policy: str

    def load_models(*arguments: Any, packed: bool) -> ReferenceAndPolicy:
        calls.append(arguments)
        return ReferenceAndPolicy("[red]no[/red]", "yes, \x1b[2J\u202e")

    def stream(model: str, _: Any, prompt_ids: list[int], listener: Any, **options: Any) -> tuple[int, bool]:
        calls.append((tokenizer.decode(prompt_ids), options))
        if "break" in calls[-1][0]:
            raise KeyboardInterrupt
        for piece in model:
            listener(piece)
        return len(model), True

    def load_tokenizer(folder: Path, template: str, options: dict[str, Any]) -> Any:
        calls[0] += (template, options)
        return tokenizer

    monkeypatch.setattr("prefdag.tokenizer.tokenizer.ChatTokenizer", load_tokenizer)
    monkeypatch.setitem(sys.modules, "prefdag.text.model", SimpleNamespace(load_models=load_models))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "prefdag.text.generation.stream", SimpleNamespace(stream=stream))  # type: ignore[arg-type]
    return calls


def chatml(*turns: str) -> str:
    """The prompt of a dialogue in which the user has the first turn."""
    roles = ("user", "assistant")
    dialogue = "".join(f"<|im_start|>{roles[n % 2]}\n{turn}<|im_end|>\n" for n, turn in enumerate(turns))
    return dialogue + "<|im_start|>assistant\n"


def test_chat_asks_both_models_and_escapes_their_answers(trained: list[Any]) -> None:
    """Brackets are not taken for markup, and escape sequences are spelled out."""
    result = prefdag("chat", "--prompt", "blue?", "--max-new-tokens", "7")
    params = load_params(ROOT / "params.yaml").format_pairs
    assert trained[0] == (Path("models/reference"), Path("models/policy"), params.template, params.template_options)
    assert trained[1:] == [(chatml("blue?"), {"max_new_tokens": 7, "temperature": 0.0, "seed": 0})] * 2
    header, _, answers = (line for line in result.stdout.splitlines() if line.strip())
    assert header.split() == ["reference", "policy"]
    assert answers.split("  ")[1].strip() == "[red]no[/red]"
    assert answers.strip().endswith(r"yes, \x1b[2J\u202e")


def test_each_model_continues_with_its_own_answers_until_an_empty_line(trained: list[Any]) -> None:
    result = prefdag("chat", typed="one\ntwo\n/reset\nthree\n\nfour\n")
    assert result.exit_code == 0
    assert [prompt for prompt, _ in trained[1:]] == [
        *(chatml("one"), chatml("one")),
        *(chatml("one", answer, "two") for answer in ("[red]no[/red]", "yes, \x1b[2J\u202e")),
        *(chatml("three"), chatml("three")),
    ]


def test_a_message_that_does_not_fit_is_refused_and_the_chat_continues(trained: list[Any]) -> None:
    result = prefdag("chat", "--max-new-tokens", "100", typed=f"{'x' * 300}\n{'y' * 100}\n{'z' * 100}\n")
    assert result.exit_code == 0
    long, cut = [line for line in result.stderr.splitlines() if "error" in line or "left out" in line]
    assert long.startswith("error: the message has ")
    assert cut == "The conversation is too long for the model. Its oldest 2 messages were left out."
    assert [prompt for prompt, _ in trained[1:]] == [chatml("y" * 100)] * 2 + [chatml("z" * 100)] * 2


def test_ctrl_c_ends_the_chat_without_a_message(trained: list[Any]) -> None:
    result = prefdag("chat", typed="break\n")
    assert result.exit_code == 130
    assert "Traceback" not in result.output
    assert "Aborted" not in result.output


def test_the_web_chat_serves_the_same_models(trained: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi.testclient import TestClient

    from prefdag.chat import server

    served: list[Any] = []
    monkeypatch.setattr(server, "serve", lambda app, listening: served.append((app, listening.getsockname())))
    result = prefdag("chat", "--web", "--port", "0", "--max-new-tokens", "9")
    app, (address, port) = served[0]
    assert address == "127.0.0.1"
    assert f"http://127.0.0.1:{port} " in result.stdout
    client = TestClient(app, base_url=f"http://127.0.0.1:{port}")
    assert 'value="9"' in client.get("/").text
    asking = {"model": "policy", "messages": [{"role": "user", "content": "blue?"}], "temperature": 0.5, "seed": 3}
    assert client.post("/v1/chat/completions", json=asking).json()["choices"][0]["message"]["content"][:3] == "yes"
    assert trained[1:] == [(chatml("blue?"), {"max_new_tokens": 9, "temperature": 0.5, "seed": 3})]


def test_a_port_in_use_is_reported_before_the_models_are_loaded(trained: list[Any]) -> None:
    from prefdag.chat.server import bind

    with bind(0) as taken:
        port = taken.getsockname()[1]
        result = prefdag("chat", "--web", "--port", str(port))
    assert (result.exit_code, trained) == (1, [])
    assert result.stderr == f"error: port {port}: Address already in use; choose another port with --port\n"


def test_the_web_chat_takes_no_prompt(trained: list[Any]) -> None:
    result = prefdag("chat", "--web", "--prompt", "blue?")
    assert (result.exit_code, trained) == (2, [])
    assert "cannot be combined with --web" in result.stderr


@pytest.mark.parametrize("record", ["changed", "absent"])
def test_models_that_are_not_as_recorded_need_force(record: str, trained: list[Any]) -> None:
    if record == "changed":
        Path("models/policy/extra.json").write_text("{}")
    else:
        write_lock(Path("models/reference"))
    result = prefdag("chat", "--prompt", "blue?")
    assert (result.exit_code, result.stdout, trained) == (2, "", [])
    assert result.stderr.startswith("error: models/policy: ")
    assert result.stderr.endswith("`--force` takes it as it is\n")
    result = prefdag("chat", "--prompt", "blue?", "--force")
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: models/policy: ")
    assert len(trained) == 3


def test_force_warns_of_each_model_that_is_not_as_recorded(trained: list[Any]) -> None:
    write_lock()
    result = prefdag("chat", "--prompt", "blue?", "--force")
    assert result.exit_code == 0
    for model in ("reference", "policy"):
        assert f"warning: models/{model}: dvc.lock does not record it" in result.stderr


def test_chat_without_models_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = prefdag("chat", "--prompt", "blue?")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: models/reference: not found; run `dvc repro` first\n"
