"""An export replaces an earlier export, and nothing else: whatever is not listed in export.json with its hash stays."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from prefdag.export import folder as folders
from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import sha256, write_json, writing

CONTENT = {"text/model.safetensors": "w", "text/README.md": "r", "image/model.onnx": "o"}


def write_export(folder: Path, **changed: str) -> Path:
    """A folder as `prefdag export` writes it, with other models in it."""
    for name, text in (CONTENT | changed).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    write_json(folder / folders.FILES, {name: sha256(folder / name) for name in CONTENT | changed})
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with an export, as the current directory, in a home of its own."""
    root = tmp_path / "home/project"
    (root / "models/dpo_text").mkdir(parents=True)
    (root / "models/dpo_text/weights").write_text("w")
    write_export(root / "export")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(root)
    return root


def state(folder: Path) -> dict[str, str]:
    """Every file, folder and link below a folder, with its content."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink())
        if path.is_symlink()
        else path.read_text()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }


def export(target: str) -> None:
    """The places and the removal of `pipeline.export`, without its models."""
    place = folders.check_place(Path(target), [Path("models/dpo_text"), Path("data/pairs")])
    with writing(place, clear=folders.clear) as new:
        write_export(new, **{"text/model.safetensors": "newer"})
        folders.note(new)


@pytest.mark.parametrize("target", ["export", "new", "deep/er/new", "empty", "empty/", "./export", "../project/export"])
def test_an_earlier_export_is_replaced_and_an_empty_folder_filled(target: str, project: Path) -> None:
    (project / "empty").mkdir()
    export(target)
    assert (project / target / "text/model.safetensors").read_text() == "newer"
    assert folders.check_owned(project / target)


def add(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("years of work")

    return change


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file": (add("thesis.tex"), "thesis.tex"),
    "a file below": (add("text/notes.md"), "text/notes.md"),
    "a Git repository": (add(".git/HEAD"), ".git"),
    "an empty folder": (lambda folder: (folder / "kept").mkdir(), "kept"),
    "an edited file": (add("text/README.md"), "text/README.md"),
    "a link": (lambda folder: (folder / "link").symlink_to("/"), "link"),
    "a link in place of a file": (
        lambda folder: ((folder / "text/README.md").unlink(), (folder / "text/README.md").symlink_to("/etc/hosts")),
        "text/README.md",
    ),
    "a link in place of a folder": (
        lambda folder: ((folder / "image").rename(folder.parent / "i"), (folder / "image").symlink_to("../i")),
        "image",
    ),
    "a pipe": (lambda folder: os.mkfifo(folder / "pipe"), "pipe"),
    "a folder in place of a file": (
        lambda folder: ((folder / "text/README.md").unlink(), (folder / "text/README.md").mkdir()),
        "text/README.md",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_the_last_export_does_not_list_is_named_and_stays(kind: str, project: Path) -> None:
    change, name = FOREIGN[kind]
    change(project / "export")
    before = state(project)
    with pytest.raises(DataError, match=rf"^export/{name}: (not part of the last export|changed since)") as caught:
        export("export")
    assert (caught.value.exit_code, "\n" in str(caught.value)) == (2, False)
    assert state(project) == before


@pytest.mark.parametrize(
    "listing",
    [
        "{}\n",
        "[]\n",
        "",
        "mine",
        '{"thesis.tex": "mine"}\n',
        '{"/etc/hosts": "%s"}\n' % ("0" * 64),
        '{"../x": "%s"}\n' % ("0" * 64),
        "[" * 100_000,
        None,
    ],
    ids=lambda text: str(text)[:12].strip(),
)
def test_a_file_called_export_json_makes_no_export(listing: str | None, project: Path) -> None:
    (project / "mine/.git").mkdir(parents=True)
    (project / "mine/thesis.tex").write_text("years")
    if listing is None:
        (project / "mine/export.json").symlink_to(project / "export/export.json")
    else:
        (project / "mine/export.json").write_text(listing)
    before = state(project)
    with pytest.raises(DataError, match=r"^mine: exists and is not an export"):
        export("mine")
    assert state(project) == before


def test_an_export_json_that_somebody_edited_is_refused(project: Path) -> None:
    listing = project / "export/export.json"
    listing.write_text(json.dumps(json.loads(listing.read_text())))
    with pytest.raises(DataError, match=r"^export: exists and is not an export"):
        export("export")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (".", "is not a folder for an export alone"),
        ("..", "is not a folder for an export alone"),
        ("/", "is not a folder for an export alone"),
        ("export/..", "is not a folder for an export alone"),
        ("~", "is not a folder for an export alone"),
        ("models", "exists and is not an export"),
        ("models/dpo_text", "models/dpo_text is an output of a stage"),
        ("models/dpo_text/export", "models/dpo_text is an output of a stage"),
        ("data/pairs/new", "data/pairs is an output of a stage"),
        ("models/dpo_text/weights", "models/dpo_text is an output of a stage"),
        ("file", "is not a folder"),
        ("file/export", "/file is not a folder"),
        ("link", "is a symbolic link"),
        ("dangling", "is a symbolic link"),
        ("loop/export", "loop of symbolic links"),
        ("/dev/null", "is not a folder"),
        ("/dev/null/export", "/dev/null is not a folder"),
    ],
)
def test_places_that_are_no_folder_for_an_export(target: str, message: str, project: Path) -> None:
    (project / "file").write_text("mine")
    (project / "link").symlink_to("export")
    (project / "dangling").symlink_to("nowhere")
    (project / "loop").symlink_to("loop")
    before = state(project)
    with pytest.raises(DataError, match=f".*{message}") as caught:
        export(str(Path(target).expanduser()))
    assert caught.value.exit_code == 2
    assert state(project) == before


def test_an_export_that_was_killed_while_it_replaced_another_goes_on(project: Path) -> None:
    """After each removal of the earlier export's files and folders, the rest is still known as an export."""
    own = folders.check_owned(project / "export")
    assert own[-1].name == folders.FILES
    for path in own:
        path.rmdir() if path.is_dir() else path.unlink()
        folders.check_owned(project / "export")
    export("export")
    assert (project / "export/text/model.safetensors").read_text() == "newer"


def test_what_appears_during_the_export_stays(project: Path) -> None:
    place = folders.check_place(Path("export"), [])

    def work() -> None:
        with writing(place, clear=folders.clear) as new:
            write_export(new)
            (place / "thesis.tex").write_text("years")

    with pytest.raises(DataError, match=r"thesis.tex: not part of"):
        work()
    assert (place / "thesis.tex").read_text() == "years"
    assert (place / "text/README.md").exists()
    assert not list(project.glob(".*.tmp"))


def test_an_export_of_another_project_stays(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside a project, only what it has exported itself is replaced, also under another name."""
    export("../shared")
    export("../shared")
    (project / "../shared").rename(project / "../moved")
    export("../moved")
    other = project.parent / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    before = state(project.parent)
    with pytest.raises(
        DataError, match=r"^../moved: has an export of another project; choose another folder"
    ) as caught:
        export("../moved")
    assert caught.value.exit_code == 2
    assert state(project.parent) == before
