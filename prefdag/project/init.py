"""Starts a project of the user's own: `prefdag init FOLDER`.

The project has the pipeline's files (`COPIED`) and the stage scripts. The library stays where it is installed: the project's
requirements.txt pins its version, and every stage depends on that file, so another version reruns the pipeline.
"""

import json
import shutil
import subprocess
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from prefdag.config.round import NUMBERS
from prefdag.lifecycle.errors import DataError, PrefdagError
from prefdag.project import dag, profiles
from prefdag.project.shipped import FILES
from prefdag.runtime.artifacts import sha256, writing

LOCKS = ["requirements.lock", "requirements-s3.lock"]
COPIED = [
    "stages",
    "profiles",
    "evals",
    "examples",
    "slurm",
    "dag",
    "params.yaml",
    "dvc.yaml",
    *LOCKS,
    ".gitignore",
    ".dvcignore",
]
TEMPLATES = Path(__file__).with_name("templates")
WRITTEN = {"README.md": "README.md.j2", ".github/workflows/pipeline.yml": "pipeline.yml.j2"}
LABELS = "labels"  # of people, a folder for each round; Git keeps an empty one for a file in it
KEEP = ".gitkeep"
WHEELS = "wheels"  # a library that was installed from a file goes along in this folder


class LibraryPin(NamedTuple):
    """The line of requirements.txt that installs this version of the library, and a wheel that it needs, if any."""

    requirement: str
    wheel: Path | None = None


def init(folder: Path, profile: str = profiles.DEFAULT) -> list[str]:
    """Write a project to `folder`, with Git and DVC set up. Returns what the user should know, a line each.

    A folder inside another Git repository becomes a part of it, unless it is ignored there.

    Raises:
        DataError: the folder exists and is not empty.
        ParamsError: there is no such profile, or one of its keys is wrong.
        PrefdagError: Git or DVC fails.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: exists and is not empty; choose another folder")
    params = profiles.under(profile, (FILES / profiles.PARAMS).read_text("utf-8"))
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    inside = not _run(folder.parent, "git", "rev-parse", "--is-inside-work-tree").returncode
    inside = inside and _run(folder.parent, "git", "check-ignore", "--quiet", f"{folder.name}/").returncode == 1
    pin = library()
    with writing(folder, clear=Path.rmdir) as new:
        new.mkdir()
        for name in COPIED:
            _copy(FILES / name, new / name)
        for number in NUMBERS:
            (new / LABELS / f"round-{number}").mkdir(parents=True)
            (new / LABELS / f"round-{number}" / KEEP).touch()
        (new / "requirements.txt").write_text(
            "# The library that runs the stages. Every stage depends on this file: another version reruns the pipeline.\n"
            f"{pin.requirement}\n",
            "utf-8",
        )
        if pin.wheel:
            (new / WHEELS).mkdir()
            shutil.copyfile(pin.wheel, new / WHEELS / pin.wheel.name)
        render = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True)
        for name, template in WRITTEN.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            text = render.get_template(template).render(name=folder.name, version=distribution("prefdag").version)
            (new / name).write_text(text, "utf-8")
        dag.main(new)
        notes = _repository(new, folder.name, inside=inside)
        if profile != profiles.DEFAULT:  # not committed, so that `prefdag profile default` takes it off again
            (new / profiles.PARAMS).write_text(params, "utf-8")
    return notes


def library() -> LibraryPin:
    """How to install the library as it is installed here: from an index, an address, or a wheel that goes along."""
    installed = distribution("prefdag")
    origin: dict[str, Any] = json.loads(installed.read_text("direct_url.json") or "{}")  # PEP 610
    url, version = origin.get("url", ""), f"prefdag=={installed.version}"
    if "vcs_info" in origin:
        return LibraryPin(f"prefdag @ {origin['vcs_info']['vcs']}+{url}@{origin['vcs_info']['commit_id']}")
    if url.startswith(("http://", "https://")):
        return LibraryPin(f"prefdag @ {url}")
    wheel = Path(unquote(urlsplit(url).path)) if url.startswith("file:") else None
    if wheel and wheel.suffix == ".whl" and wheel.is_file():
        return LibraryPin(f"./{WHEELS}/{wheel.name} --hash=sha256:{sha256(wheel)}", wheel)
    return LibraryPin(version)


def _repository(new: Path, name: str, *, inside: bool) -> list[str]:
    """Set up Git and DVC in `new`, and commit. Returns notes for the user."""

    def must(*command: str) -> None:
        done = _run(new, *command)
        if done.returncode:
            raise PrefdagError(f"{' '.join(command[:2])}: {' '.join(done.stderr.split())}")

    if not inside:
        must("git", "init", "--quiet", "--initial-branch=main")
    # The repository around it may ignore `new`, whose name is temporary, and must not track files under that name.
    must("dvc", "init", "--quiet", *(["--no-scm"] if inside else []))
    shutil.copyfile(FILES / ".dvc" / "config", new / ".dvc" / "config")
    if inside:
        (new / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n", "utf-8")
        return [
            "part of the Git repository around it: commit it, and move .github/workflows/pipeline.yml to its root",
        ]
    must("git", "add", "--all", ".")
    if _run(new, "git", "commit", "--quiet", "--message", f"{name}: a project of prefdag").returncode:
        return [
            'not committed, since Git does not know your name: git config user.name ..., then git commit -m "Start"'
        ]
    return []


def _run(folder: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise PrefdagError(f"{command[0]}: not found; install it") from None


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "dvc.lock"))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
