"""`prefdag verify` finds and names flipped bits that DVC itself does not report."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from prefdag.cli import app
from prefdag.lifecycle.errors import ParamsError
from prefdag.project import verify

PIPELINE = """\
stages:
  one:
    cmd: python -c "open('one.txt', 'w').write('1' * 100)"
    outs: [one.txt]
  many:
    cmd: python -c "import os; os.makedirs('many/in'); [open(f'many/{n}', 'w').write(n * 50) for n in ('a', 'in/b')]"
    deps: [one.txt]
    params: [a.b]
    outs: [many]
  measure:
    cmd: python -c "open('metrics.json', 'w').write('{}')"
    deps: [many, code]
    metrics:
      - metrics.json: {cache: false}
"""
CACHE = Path(".dvc/cache/files/md5")
REMOTE = Path("storage/files/md5")


def dvc(*arguments: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["dvc", *arguments], check=True, capture_output=True, env={**os.environ, "PATH": path})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose pipeline has run, pushed to a remote in a folder."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path_factory.mktemp("site")))
        subprocess.run(["git", "init", "--quiet"], check=True)
        Path("dvc.yaml").write_text(PIPELINE)
        Path("params.yaml").write_text("a: {b: 1, c: 2}\n")
        Path("code/below/__pycache__").mkdir(parents=True)
        Path("code/main.py").write_text("1")
        Path("code/below/other.py").write_text("2")
        Path(".dvcignore").write_text("__pycache__\n")
        dvc("init", "--quiet")
        dvc("config", "cache.type", "copy")
        dvc("remote", "add", "--default", "storage", "storage")
        dvc("repro")
        dvc("push")
    return folder


@pytest.fixture
def repo(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of that repository, as the current directory."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    subprocess.run(["cp", "-a", f"{made}/.", str(tmp_path / "repo")], check=True)
    monkeypatch.chdir(tmp_path / "repo")
    dvc("remote", "modify", "storage", "url", str(Path("storage").resolve()))


pytestmark = [pytest.mark.usefixtures("repo"), pytest.mark.slow]


def flip(path: Path) -> None:
    """Flip one bit of the middle byte. Size and time stay the same."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def objects(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def test_nothing_differs_after_a_run() -> None:
    assert list(verify.differences("storage")) == []
    result = CliRunner().invoke(app, ["verify", "--remote", "storage"])
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "stage    in dvc.lock  outs ok  changed  absent  deps ok  changed  params ok  changed",
        "one      yes                1        0       0        0        0          0        0",
        "many     yes                1        0       0        1        0          1        0",
        "measure  yes                1        0       0        2        0          0        0",
        "everything present matches dvc.lock",
    ]


@pytest.mark.parametrize(
    ("path", "stage"), [("one.txt", "one"), ("many/a", "many"), ("many/in/b", "many"), ("metrics.json", "measure")]
)
def test_a_flipped_output_is_named(path: str, stage: str) -> None:
    flip(Path(path))
    assert list(verify.differences()) == [f"{path}: not what stage {stage} wrote"]


def test_added_and_missing_files_are_named() -> None:
    Path("many/new").write_text("")
    Path("many/a").unlink()
    assert list(verify.differences()) == [f"many/{name}: not what stage many wrote" for name in ("a", "new")]


def test_every_flipped_object_of_the_cache_is_found() -> None:
    paths = list(objects(CACHE))
    assert len(paths) == 5  # one.txt, many and its two files, and metrics.json, for the run cache
    for number, path in enumerate(paths, 1):
        flip(path)
        lines = list(verify.differences())
        assert len(lines) == number
        assert any(str(path) in line and "damaged" in line for line in lines)
    result = CliRunner().invoke(app, ["verify"])
    assert result.exit_code == 1
    assert "error: 5 differences from dvc.lock; `dvc checkout --force`" in result.output


def test_every_flipped_object_of_a_remote_is_found() -> None:
    for number, path in enumerate(objects(REMOTE), 1):
        flip(path)
        lines = list(verify.differences("storage"))
        assert len(lines) == number
        assert all(line.startswith("remote storage: ") for line in lines)
        assert sum(str(path) in line for line in lines) == 1
    assert number == 5 - 1  # without metrics.json, which is not pushed
    assert list(verify.differences()) == []  # the cache is intact


def test_an_object_missing_in_a_remote_is_named() -> None:
    gone = next(objects(REMOTE))
    gone.unlink()
    assert list(verify.differences("storage")) == [f"remote storage: {gone.parent.name}{gone.name}: missing"]


def test_a_missing_output_is_no_difference() -> None:
    Path("one.txt").unlink()
    subprocess.run(["rm", "-r", "many", CACHE], check=True)
    assert list(verify.differences()) == []
    assert list(verify.differences("storage")) == []


def test_an_unknown_remote_is_refused() -> None:
    with pytest.raises(ParamsError, match=r"^.dvc/config: remote 'away': .*; `dvc remote list` lists the remotes$"):
        list(verify.differences("away"))


def edit_lock(edit: Callable[[dict[str, Any]], object]) -> None:
    tree = YAML(typ="safe").load(verify.LOCK)
    edit(tree)
    with verify.LOCK.open("w") as stream:
        YAML(typ="safe").dump(tree, stream)


@pytest.mark.parametrize("gone", [["one"], ["many", "measure"], ["one", "many", "measure"]])
def test_a_stage_missing_from_the_lock_is_a_difference(gone: list[str]) -> None:
    """Its outputs may have any content: without an entry they cannot be checked. The last case is `stages: {}`."""
    edit_lock(lambda tree: [tree["stages"].pop(stage) for stage in gone])
    for path in objects(Path("many")):
        flip(path)
    flip(Path("one.txt"))
    result = CliRunner().invoke(app, ["verify"])
    assert result.exit_code == 1
    for stage in gone:
        assert f"dvc.lock: has no stage {stage}, so its outputs cannot be checked; `git restore" in result.stdout
        assert re.search(rf"(?m)^{stage} +no( +0){{7}}$", result.stdout)
    assert "everything present matches" not in result.stdout


def test_a_lock_that_does_not_belong_to_dvc_yaml_is_a_difference() -> None:
    def edit(tree: dict[str, Any]) -> None:
        tree["stages"]["one"]["cmd"] = "true"
        tree["stages"]["two"] = tree["stages"].pop("measure")
        tree["stages"]["many"]["outs"] = []

    edit_lock(edit)
    lines = list(verify.differences())
    assert "dvc.lock: stage one ran another command than dvc.yaml has" in lines
    assert "dvc.lock: stage two is not in dvc.yaml" in lines
    assert any(line.startswith("dvc.lock: has no stage measure") for line in lines)
    assert "dvc.lock: stage many has other outputs than in dvc.yaml: many" in lines


def test_inputs_that_changed_since_a_stage_ran_are_differences() -> None:
    Path("code/below/__pycache__/other.pyc").write_text("ignored")
    assert list(verify.differences()) == []
    Path("code/below/other.py").write_text("3")
    Path("params.yaml").write_text("a: {b: 3, c: 3}\n")
    assert list(verify.differences()) == [
        "params.yaml: a.b: not the value read by stage many",
        "code: not the one read by stage measure",
    ]
    shutil.rmtree("code")
    assert "code: absent, needed by stage measure" in list(verify.differences())
    edit_lock(lambda tree: tree["stages"]["many"]["deps"][0].update(md5="0" * 32))
    wrong = "dvc.lock: one.txt is not the one that stage one wrote, for stage many"
    assert wrong in list(verify.differences())


def test_absent_outputs_are_listed_as_not_checked() -> None:
    Path("one.txt").unlink()
    shutil.rmtree("many")
    result = CliRunner().invoke(app, ["verify"])
    assert result.exit_code == 0
    assert "not checked, since they are absent: 2 outputs (one.txt, many); `dvc pull`" in result.stdout


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "stages: []",
        "stages: {one: []}",
        "stages: {one: {outs: {}}}",
        "stages: {one: {outs: [a]}}",
        "stages: {one: {outs: [{path: a}]}}",
        "stages: {one: {outs: [{path: 1, md5: 2}]}}",
        "stages: {one: {params: []}}",
        "<<<<<<< HEAD\nstages: {}\n=======\nstages: {}\n>>>>>>> other\n",
        "\0",
        "stages: &a {b: *a}",
    ],
)
@pytest.mark.parametrize("file", ["dvc.lock", "dvc.yaml"])
def test_a_file_of_another_shape_is_one_line(file: str, text: str) -> None:
    if file == "dvc.yaml":
        text = (
            text.replace("path: a", "path: a, md5: b")
            .replace("params: []", "params: [[]]")
            .replace("outs: [a]", "outs: [[a]]")
        )
    Path(file).write_text(text)
    result = CliRunner().invoke(app, ["verify"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith(f"error: {file}: ")
    assert "git " in result.stderr or "<" not in text


def test_a_missing_lock_is_refused() -> None:
    verify.LOCK.unlink()
    with pytest.raises(ParamsError, match=r"^dvc.lock: not found"):
        list(verify.differences())


def test_a_stage_in_a_folder_is_checked_too() -> None:
    folder = Path("dag/more")
    folder.mkdir(parents=True)
    (folder / "dvc.yaml").write_text(
        "stages: {more: {wdir: ../.., cmd: cp one.txt more.txt, deps: [one.txt], outs: [more.txt]}}"
    )
    file = folder / "dvc.lock"
    missing = (
        f"{file}: has no stage more, so its outputs cannot be checked; `git restore {file}` or `dvc repro` adds it"
    )
    assert list(verify.differences()) == [missing]
    dvc("repro", "--single-item", f"{folder}/dvc.yaml:more")
    assert list(verify.differences()) == []
    flip(Path("more.txt"))
    assert list(verify.differences()) == ["more.txt: not what stage more wrote"]
