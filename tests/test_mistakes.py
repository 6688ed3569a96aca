"""No command and no stage ends in a traceback for a user's mistake: all of `prefdag --help`, in many broken folders.

A call ends with code 0, 1 or 2 (3 for a stage), at most one line that starts with "error:", and no traceback.
"""

import importlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import pytest
import typer
from compared_runs import OUTS, write_run
from dvc_lock import write_lock
from paths import ROOT
from report_inputs import write_inputs
from typer.testing import CliRunner

from prefdag.cli import app
from prefdag.export.pipeline import INPUTS
from prefdag.runtime.artifacts import remove
from prefdag.runtime.dvc_files import files, read_dag, script

pytestmark = pytest.mark.slow

COMMANDS = list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
# What a command is called with, by command; without an entry, nothing.
CALLS = {
    "init": ["params.yaml", "params.yaml/new", "/proc/new", "new"],
    "profile": ["", "tiny", "nothing", "params.yaml", ".", "/dev/null/x.yaml", "default --force"],
    "pin": ["--check", "nothing --check"],
    "experiments": ["", "--nothing"],
    "frontier": ["", "--from mlflow"],
    "verify": ["", "--remote nothing"],
    "compare": ["", "nothing workspace"],
    "chat": ["--prompt hi", "--prompt hi --force"],
    "export": ["", "--force", "--to params.yaml", "--to /proc/new", "--to .", "--push nothing", "--register"],
}
QUICK = ["summary", "verify", "frontier", "compare", "chat --prompt hi", "export", "pin --check", "profile tiny"]
LIGHT = [call for call in QUICK if not call.startswith("chat")]  # chat imports torch
READERS = ["summary", "frontier", "compare"]  # of metrics.json of a track

METRICS = [f"reports/{track}/metrics.json" for track in ("text", "image")]
OUTPUTS = sorted({*OUTS, *METRICS, *map(str, INPUTS)})
STAGES = {"a": None, "make": {"cmd": 1, "outs": [{"path": 1}], "deps": 3}}
CONTENTS = {
    "missing": None,
    "empty": b"",
    "a list": b"[1, 2]",
    "other keys": json.dumps({"stages": STAGES, "heldout": {"rewards": {}}, "policy": {}}).encode(),
    "other values": json.dumps({"stages": {}, "heldout": [], "policy": 1, "beta": "x", "loss": 3}).encode(),
    "binary": bytes(range(256)),
    "in conflict": b"<<<<<<< HEAD\na: 1\n=======\na: 2\n>>>>>>> other\n",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small repository with a finished run, all of it in Git. Its models are empty folders."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{name}_NAME", "a")
            patch.setenv(f"GIT_{name}_EMAIL", "a@example.com")
        write_run(0.1)
        write_inputs(folder / "inputs")
        for path in map(Path, METRICS):
            run, report = json.loads(path.read_text()), json.loads(Path("inputs", path).read_text())
            path.write_text(json.dumps(report | run | {key: report[key] for key in ("heldout",) if key in report}))
        shutil.copy("inputs/reports/text/win_rate.json", "reports/text")
        shutil.rmtree("inputs")
        shutil.copyfile(ROOT / "params.yaml", "params.yaml")
        shutil.copytree(ROOT / "evals", "evals")
        shutil.copytree(ROOT / "examples", "examples")
        for path in map(Path, OUTPUTS):
            if not path.exists():
                path.touch() if path.suffix else path.mkdir(parents=True)
        for model in ("reference", "dpo_text", "dpo_image"):
            Path("models", model, "config.json").write_text("{}")
        Path("data/image_pairs/a").touch()
        Path("reports/metrics.json").write_text('{"text": {"kl": 1}}')
        stage = {"cmd": "make", "outs": [{out: {"cache": False}} for out in OUTPUTS]}
        Path("dvc.yaml").write_text(json.dumps({"stages": {"make": stage}}))
        write_lock(*map(Path, OUTPUTS))
        for command in ("git init -q", f"{sys.executable} -m dvc init -q", "git add -Af", "git commit -qm a"):
            subprocess.run(command.split(), check=True, capture_output=True)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path, own_git: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the current folder."""
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    monkeypatch.chdir(copy)
    return copy


def calls() -> Iterator[str]:
    """Every command, as it is called here."""
    for name in COMMANDS:
        yield from (f"{name} {arguments}".rstrip() for arguments in CALLS.get(name, [""]))


def wrong(code: int, output: str, bug: BaseException | None = None) -> str:
    """What a user should not see; empty if all is well."""
    errors = [line for line in output.splitlines() if line.lower().startswith("error:")]
    if bug is not None or "Traceback" in output:
        return f"a traceback: {bug!r}"
    if code not in (0, 1, 2):
        return f"exit code {code}"
    return f"{len(errors)} errors" if len(errors) > 1 or (code and not errors and "Usage:" not in output) else ""


def failures(
    chosen: Iterable[str], before: Callable[[], object] = lambda: None, stdout: str | None = os.devnull
) -> list[str]:
    """The calls that go wrong in the current folder, and why. `before` prepares the folder for each."""
    found = []
    for call in chosen:
        before()
        found += failure(call, partial(app, call.split()), stdout)
    return found


def failure(name: str, run: Callable[[], object], stdout: str | None = os.devnull) -> list[str]:
    """What goes wrong with one command or stage in this process, if anything."""
    errors, code, bug = io.StringIO(), 0, None
    opened = partial(Path(stdout).open, "w", encoding="utf-8") if stdout else nullcontext
    with opened() as stream, redirect_stdout(stream), redirect_stderr(errors):  # without a stream, there is no stdout
        try:
            run()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException as error:
            bug = error
    problem = wrong(code, errors.getvalue(), bug)
    return [f"{name}: {problem}: {errors.getvalue()[-300:]}"] if problem else []


def in_a_process(folder: Path, chosen: Iterable[str], *prefix: str, **environment: str) -> list[str]:
    """`failures` in a process of its own, with this environment and no other."""
    code = "from prefdag.lifecycle.environment import use_utf8; use_utf8(); import json, sys, test_mistakes as t; "
    code += "print(json.dumps(t.failures(sys.argv[1:])))"
    command = [*prefix, sys.executable, "-c", code, *chosen]
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests/helpers")))
    environment |= {"PATH": os.environ["PATH"], "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_finished_run_is_one(folder: Path) -> None:
    """Otherwise, every command might stop at the same mistake."""
    for call in ("summary", "verify", "frontier", "compare", "pin --check", "experiments", "profile tiny"):
        done = CliRunner().invoke(app, call.split())
        assert done.exit_code == 0, (call, done.output)


def test_what_is_wrong_is_found() -> None:
    """A negative control."""
    assert wrong(1, "Traceback (most recent call last):")
    assert wrong(1, "", KeyError("kl"))
    assert wrong(2, "error: a\nerror: b")
    assert wrong(2, "")
    assert wrong(139, "error: a")
    assert not wrong(0, "done")
    assert not wrong(2, "error: a")


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml", "dvc.lock", *METRICS])
def test_a_broken_file(name: str, folder: Path) -> None:
    found = []
    path = Path(name)
    readers = READERS if name in METRICS else QUICK
    for kind, content in CONTENTS.items():
        if name == METRICS[1] and not kind.startswith("other"):  # it is read like the first one
            continue

        def damage(content: bytes | None = content) -> None:
            remove(path)
            if content is not None:
                path.write_bytes(content)
                if name in METRICS:  # as if a stage of another version had written it
                    write_lock(*map(Path, OUTPUTS))

        found += [f"{kind}: {each}" for each in failures(readers, damage)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", ["params.yaml", "dvc.lock"])
def test_a_folder_in_place_of_a_file(name: str, folder: Path) -> None:
    """With every call."""
    Path(name).unlink()
    Path(name).mkdir()
    found = failures(calls())
    assert not found, "\n".join(found)


def test_broken_metrics_of_dvc(folder: Path) -> None:
    Path("reports/metrics.json").write_bytes(CONTENTS["in conflict"] or b"")
    found = failures(["experiments"])
    assert not found, "\n".join(found)


@pytest.mark.parametrize("situation", ["an empty folder", "no Git", "no DVC", "before any run"])
def test_an_incomplete_folder(situation: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if situation == "an empty folder":
        Path("empty").mkdir()
        monkeypatch.chdir("empty")
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(folder))
    elif situation == "before any run":
        for name in ("dvc.lock", "data", "models", "reports"):
            remove(Path(name))
    else:
        remove(Path(f".{situation.removeprefix('no ').lower()}"))
    found = failures(calls() if situation == "no Git" else QUICK)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("trusted", [True, False])
def test_a_read_only_tree_of_another_user(trusted: bool, folder: Path) -> None:
    """Root may write everywhere, so it gives that up. Git trusts a repository of another user only if it is told to."""
    prefix = []
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root without setpriv")
        prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
        subprocess.run(["chown", "-R", "65534:65534", folder], check=True)
    subprocess.run(["chmod", "-R", "a-w,a+rX", folder], check=True)
    settings = folder.with_name("git")
    settings.write_text("[safe]\n\tdirectory = *\n" if trusted else "")
    try:
        chosen = calls() if trusted else LIGHT
        found = in_a_process(folder, chosen, *prefix, GIT_CONFIG_GLOBAL=str(settings), GIT_CONFIG_NOSYSTEM="1")
    finally:
        subprocess.run(["chmod", "-R", "u+w", folder], check=True)
    assert not found, "\n".join(found)


def test_a_locale_without_utf8_and_no_home(folder: Path) -> None:
    accented = folder.rename(folder.with_name("\u00e9 \u00fc"))
    found = in_a_process(accented, LIGHT, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("stdout", ["/dev/full", None])
def test_a_full_or_closed_stdout(stdout: str | None, folder: Path) -> None:
    found = failures([*QUICK, *(f"{name} --help" for name in COMMANDS)], stdout=stdout)
    assert not found, "\n".join(found)


# Stages


def stage_failures(names: Iterable[str]) -> list[str]:
    """The stages that go wrong in the current folder, and why. A stage that runs goes wrong too."""

    def run(name: str) -> None:
        sys.argv = name.split("@")
        importlib.import_module(f"stages.{script(name)}").main.run()
        raise AssertionError("it ran")

    return [each for name in names for each in failure(name, partial(run, name))]


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml", "inputs"])
def test_stages_without_their_files(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download and plan_rounds have no inputs, and would start."""
    monkeypatch.setattr(sys, "argv", ["stage"])
    monkeypatch.delenv("DVC_STAGE", raising=False)
    stages = [stage for stage in read_dag(ROOT / "dvc.yaml") if not stage.endswith(("@2", "@3"))]
    for file in files(ROOT / "dvc.yaml"):
        own = file.relative_to(ROOT)
        own.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, own)
    found = []
    if name == "inputs":
        for made in ("data", "models", "reports"):
            remove(Path(made))
        found = stage_failures([stage for stage in stages if not stage.startswith(("download", "plan"))])
    else:
        for kind in ("other keys", "binary", "in conflict"):
            Path(name).write_bytes(CONTENTS[kind] or b"")
            found += [f"{kind}: {each}" for each in stage_failures(stages)]
    assert not found, "\n".join(found)
