"""The next `make setup` mends one that was killed or whose disk was full. With the real pip and uv, and few packages."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paths import ROOT

POINTS = 10
# A small part of requirements.lock: what an editable installation needs, and a package with a few hundred files.
PACKAGES = ("hatchling", "packaging", "pathspec", "pluggy", "tomlkit", "trove-classifiers", "networkx")
PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "prefdag"
version = "0.1.0"
[tool.hatch.build.targets.wheel]
packages = ["prefdag"]
[tool.hatch.build]
dev-mode-dirs = ["."]
"""
NAMESPACE = ["unshare", "--map-root-user", "--mount"]


def environment() -> dict[str, str]:
    """Ours, without what `make test` and an active virtual environment tell their children."""
    ours = ("MAKE", "MFLAGS", "VIRTUAL_ENV", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the Makefile, and lock files that are small."""
    folder = tmp_path / "clone"
    for name in ("prefdag", "stages", "tests"):
        (folder / name).mkdir(parents=True)
    (folder / "prefdag/__init__.py").touch()
    (folder / "pyproject.toml").write_text(PROJECT)
    for name in ("Makefile", "requirements-uv.lock", "requirements-test.lock"):
        shutil.copyfile(ROOT / name, folder / name)
    locked = re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text())
    (folder / "requirements.lock").write_text(
        "\n".join(entry for entry in locked if entry.partition("==")[0] in PACKAGES) + "\n"
    )
    return folder


def start(clone: Path, *arguments: str) -> subprocess.Popen[str]:
    command = ["make", *arguments, f"PYTHON={sys.executable}"]
    return subprocess.Popen(
        command,
        cwd=clone,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def make(clone: Path, *arguments: str) -> str:
    """Run make to its end. Returns what it printed."""
    process = start(clone, *arguments)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def kill(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def check_installed(clone: Path, *, alone: bool = True) -> None:
    """Everything locked can be imported, uv runs, nothing of the setup is left, and another setup has nothing to do.

    Args:
        alone: whether nothing else is installed, so that no package lacks another.
    """
    imports = "import hatchling, networkx, packaging, pathspec, pluggy, tomlkit, trove_classifiers, prefdag"
    subprocess.run([clone / ".venv/bin/python", "-c", imports], check=True, cwd=clone.parent, env=environment())
    if alone:
        subprocess.run([clone / ".venv/bin/uv", "pip", "check"], check=True, cwd=clone, env=environment())
    assert not os.path.lexists(clone / ".venv.tmp")
    before = (clone / ".venv/.installed").stat().st_mtime_ns
    assert "Installing" not in make(clone, "setup")
    assert (clone / ".venv/.installed").stat().st_mtime_ns == before


@pytest.mark.chaos
def test_a_setup_killed_at_any_time_is_mended_by_the_next(clone: Path) -> None:
    begin = time.monotonic()
    make(clone, "setup")
    whole = time.monotonic() - begin
    check_installed(clone)
    killed = 0
    for point in range(POINTS):
        make(clone, "clean")
        process = start(clone, "setup")
        if point == 0:  # while pip writes uv
            while not (clone / ".venv/bin/uv").exists():
                time.sleep(0.001)
        else:
            time.sleep(whole * point / POINTS)
        killed += process.poll() is None
        kill(process)
        make(clone, "setup")
        check_installed(clone)
    assert killed >= POINTS - 2  # a setup may be faster than the first one


@pytest.mark.chaos
@pytest.mark.slow
def test_an_update_or_an_extra_that_was_killed_is_mended_by_the_next(clone: Path) -> None:
    make(clone, "setup")
    target = ".venv/.extra-test"
    for wait in (0.1, 0.3):
        os.utime(clone / "requirements.lock")
        process = start(clone, "setup")
        time.sleep(wait)
        kill(process)
        make(clone, "setup")
        check_installed(clone, alone=False)
        process = start(clone, target)
        time.sleep(wait)
        kill(process)
        make(clone, target)
        subprocess.run([clone / ".venv/bin/python", "-c", "import trl"], check=True, cwd=clone, env=environment())
        os.utime(clone / "requirements-test.lock")
    (package,) = (clone / ".venv/lib").glob("python*/site-packages/trl-*.dist-info")
    for name in ("METADATA", "RECORD", "INSTALLER"):  # as if it had been killed before it wrote these
        (package / name).unlink(missing_ok=True)
    make(clone, target)
    assert (package / "METADATA").exists()


@pytest.mark.chaos
@pytest.mark.parametrize("megabytes", [1, 8, 30, 60])
def test_a_setup_on_a_full_disk_is_mended_by_the_next(clone: Path, megabytes: int) -> None:
    """A disk of this size in memory, which then gets larger."""
    script = f"""
set -e
mount -t tmpfs -o size={megabytes}m none "$1"/disk
cp -r "$1"/clone/. "$1"/disk
cd "$1"/disk
make setup PYTHON={sys.executable} && exit 3
test ! -e .venv/.installed || exit 4
mount -o remount,size=1g "$1"/disk
make setup PYTHON={sys.executable}
.venv/bin/python -c 'import hatchling, networkx, prefdag'
.venv/bin/uv pip check
test ! -L .venv.tmp
"""
    try:
        subprocess.run([*NAMESPACE, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no mount namespace to make a full disk in: {error}")
    (clone.parent / "disk").mkdir()
    done = subprocess.run(
        [*NAMESPACE, "bash", "-c", script, "bash", clone.parent], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_an_environment_of_the_users_own_is_used_and_never_removed(clone: Path) -> None:
    """Neither by a setup that was killed, nor by `make clean`. A folder that is no environment is refused."""
    mine = clone / "mine"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", mine], check=True)
    (mine / "notes").write_text("years")
    process = start(clone, "setup", "VENV=mine")
    while not (mine / "bin/uv").exists():
        time.sleep(0.001)
    kill(process)
    assert not os.path.lexists(clone / "mine.tmp")
    shutil.rmtree(mine / "bin", ignore_errors=True)  # what the next setup repairs
    process = start(clone, "setup", "VENV=mine")
    process.communicate()
    assert "mine: not made by make setup, so it stays" in make(clone, "clean", "VENV=mine")
    assert (mine / "notes").read_text() == "years"


@pytest.mark.slow
def test_folders_that_are_no_environment_of_ours_stay(clone: Path) -> None:
    (clone / "thesis").mkdir()
    (clone / "thesis/thesis.tex").write_text("years")
    (clone / "other.tmp").write_text("mine")
    for venv, message in (
        ("thesis", "thesis: is not a virtual environment"),
        ("other", "other.tmp: exists and is not of make setup"),
        ("", "VENV is empty"),
    ):
        process = start(clone, "setup", f"VENV={venv}")
        output, _ = process.communicate()
        assert (process.returncode != 0, message in output) == (True, True), output
    make(clone, "clean", "VENV=thesis")
    make(clone, "clean", "VENV=")
    assert (clone / "thesis/thesis.tex").read_text() == "years"
    assert (clone / "other.tmp").read_text() == "mine"


def test_a_setup_that_still_runs_is_not_disturbed(clone: Path) -> None:
    (clone / ".venv").mkdir()
    (clone / ".venv.tmp").symlink_to(f"make-setup-{os.getpid()}")
    process = start(clone, "setup")
    output, _ = process.communicate()
    assert process.returncode != 0
    assert f"Process {os.getpid()} is setting up .venv." in output
    assert (clone / ".venv").is_dir()
