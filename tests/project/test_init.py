"""`prefdag init`: a project of the user's own, from a checkout and from the wheel."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prefdag.cli import app
from prefdag.lifecycle import version
from prefdag.lifecycle.errors import PrefdagError
from prefdag.project import init
from prefdag.runtime.artifacts import read_json
from prefdag.runtime.dvc_files import read_dag
from prefdag.runtime.yaml import read_yaml

pytestmark = pytest.mark.slow


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def mine(own_git: None, tmp_path: Path) -> Path:
    """A new project, on the tiny profile."""
    assert init.init(Path("mine"), "tiny") == []
    return tmp_path / "mine"


def test_a_new_project(mine: Path, root: Path) -> None:
    """It is committed, and has the repository's files. Its code is its scripts and the library's version."""
    assert git(mine, "log", "--format=%s") == "mine: a project of prefdag\n"
    assert (
        git(mine, "status", "--porcelain") == " M params.yaml\n"
    )  # the profile, which `prefdag profile default` undoes
    assert git(mine, "show", "HEAD:params.yaml") == (root / "params.yaml").read_text("utf-8")
    assert "max_pairs: 20" in (mine / "params.yaml").read_text("utf-8")
    for name in (
        "stages/dpo_text.py",
        "profiles/tiny.yaml",
        "evals/pronouns.jsonl",
        "examples/instructions/make.py",
        "slurm/experiment.sh",
        "labels/round-3/.gitkeep",
        "requirements.lock",
        ".gitignore",
    ):
        assert (mine / name).read_bytes() == (root / name).read_bytes()
    ours, theirs = (read_dag(folder / "dvc.yaml") for folder in (mine, root))
    assert list(ours) == list(theirs)
    assert (ours["hash_code"]["deps"], theirs["hash_code"]["deps"]) == (
        ["stages", "requirements.txt"],
        ["prefdag", "stages"],
    )
    assert {**ours, "hash_code": {}} == {**theirs, "hash_code": {}}


def test_its_workflow_runs_the_tiny_profile(mine: Path) -> None:
    """Actions are pinned to commits, and what it installs has hashes."""
    workflow: dict[str, Any] = read_yaml(mine / ".github/workflows/pipeline.yml")
    steps = workflow["jobs"]["tiny"]["steps"]
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step["uses"]) for step in steps if "uses" in step)
    commands = "".join(step.get("run", "") for step in steps)
    assert "prefdag profile tiny\ndvc repro\n" in commands
    assert "--require-hashes -r requirements.lock" in commands


def test_the_code_of_a_stage_in_a_project(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its script, losses and checks of the user's own if it uses them, any other module that it imports, and the library."""
    monkeypatch.chdir(mine)
    (mine / "stages" / "own.py").write_text("X = 1\n")
    script = mine / "stages" / "report.py"
    script.write_text(
        script.read_text().replace(
            "from prefdag.runtime.stage", "from stages.own import X\nfrom prefdag.runtime.stage", 1
        )
    )
    subprocess.run([sys.executable, "-m", "stages.hash_code"], check=True)
    assert list(read_json(mine / "data/code/report.json")) == ["requirements.txt", "stages/own.py", "stages/report.py"]
    assert list(read_json(mine / "data/code/judge_text.json")) == [
        *("requirements.txt", "stages/judge_text.py", "stages/losses.py", "stages/verify.py")
    ]
    assert list(read_json(mine / "data/code/sft_ref.json")) == ["requirements.txt", "stages/sft_ref.py"]


def test_a_project_inside_a_repository(own_git: None, tmp_path: Path, root: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / ".gitignore").write_text("*.tmp\n/.site/\n")
    (note,) = init.init(Path("mine"))
    assert git(tmp_path, "status", "--porcelain") == "?? .gitignore\n?? mine/\n"  # nothing under a temporary name
    assert note.startswith("part of the Git repository around it")
    assert not (tmp_path / "mine" / ".git").exists()
    command = ["dvc", "stage", "list", "--all", "--name-only"]
    listed = subprocess.run(command, cwd=tmp_path / "mine", check=True, capture_output=True, text=True).stdout
    assert {name.rpartition(":")[2] for name in listed.split()} == set(read_dag(root / "dvc.yaml"))


def test_a_folder_that_the_repository_ignores_is_one_of_its_own(own_git: None, tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / ".gitignore").write_text("/mine/\n")
    assert init.init(Path("mine")) == []
    assert git(tmp_path / "mine", "log", "--format=%s") == "mine: a project of prefdag\n"


@pytest.mark.parametrize("content", ["thesis.tex", ".git/HEAD"])
def test_a_folder_that_is_not_empty_is_left_alone(own_git: None, tmp_path: Path, content: str) -> None:
    file = tmp_path / "mine" / content
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    result = CliRunner().invoke(app, ["init", "mine"])
    assert result.exit_code == 2
    assert result.stderr == "error: mine: exists and is not empty; choose another folder\n"
    assert [path for path in (tmp_path / "mine").rglob("*") if path.is_file()] == [file]


def test_an_unknown_profile_leaves_nothing_behind(own_git: None, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["init", "mine", "--profile", "tyni"])
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert result.stderr.startswith("error: profiles/tyni.yaml: no such profile; choose from default, ")


@pytest.mark.parametrize(
    ("line", "pinned"),
    [
        ("prefdag==1.2.3", "1.2.3"),
        ("prefdag == 1.2.3  # the library", "1.2.3"),
        ("./wheels/prefdag-1.2.3-py3-none-any.whl --hash=sha256:00", "1.2.3"),
        ("prefdag @ https://example.com/prefdag-1.2.3-py3-none-any.whl", "1.2.3"),
        ("prefdag @ git+https://example.com/prefdag@0123", None),  # no version is known
        ("prefdag>=1.2", None),
        ("torch==2.0", None),
        ("# prefdag==1.2.3", None),
        ("", None),
    ],
)
def test_the_pinned_version(line: str, pinned: str | None) -> None:
    assert version.pinned_version(line) == pinned


def test_another_version_than_the_pinned_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    version.check_version()  # nothing is pinned
    monkeypatch.setattr(version, "version", lambda name: "0.2.0")
    version.REQUIREMENTS.write_text("torch==2.0\nprefdag==0.2.0\n")
    version.check_version()
    version.REQUIREMENTS.write_text("prefdag==0.1.0\n")
    with pytest.raises(
        PrefdagError, match=r"^requirements\.txt: pins prefdag 0\.1\.0, but 0\.2\.0 is installed; install"
    ):
        version.check_version()


def test_the_wheel_has_what_init_copies_and_no_package_called_stages(root: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        assert {name.split("/")[0] for name in names} == {"prefdag"}
        packed = {name.removeprefix("prefdag/project/files/"): name for name in names if "/project/files/" in name}
        assert {name.split("/")[0] for name in packed} == {*init.COPIED, ".dvc"}
        for name, member in packed.items():
            assert archive.read(member) == (root / name).read_bytes()
