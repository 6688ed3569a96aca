"""Local files and folders: find them, copy them, and say what is there if they are not."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from prefdag.lifecycle.errors import SourceError
from prefdag.runtime.artifacts import project_root, sha256
from prefdag.sources.contents import reject_notes, reject_single
from prefdag.sources.pins import expanded, masked, nearest

LFS_PULL = "run `git lfs pull` in its repository"


def find(name: str) -> Path:
    """The existing file or folder called `name`, which may have ~ and $NAME. Raises `SourceError`."""
    # A queued experiment runs in a copy of the repository, elsewhere and without the files that Git does not track.
    # The pin makes it safe to look in both places, since the file must have the pinned content.
    for place in (Path(name), project_root() / name):
        if _exists(place):
            return place
    if "://" in name:
        kind = "hub" if name.startswith("hf://") else "url"
        raise SourceError(f"path '{masked(name)}' is a URL; a source of kind {kind} fetches it")
    if re.match(r"[\w.-]+@[\w.-]+:", name):
        raise SourceError(f"path '{name}' is a Git repository; a source of kind dvc fetches files from it")
    try:
        path = Path(expanded(name)).expanduser()
    except RuntimeError:
        raise SourceError(f"path '{name}': there is no such user; write the folder in full") from None
    for place in (path, project_root() / path):
        if _exists(place):
            return place
    hub = "; a repository on the hub is a source of kind hub" if re.fullmatch(r"[\w-]+/[\w.-]+", name) else ""
    raise SourceError(f"path '{name}' not found; {_instead(project_root() / path)}{hub}")


def _exists(place: Path) -> bool:
    try:
        return place.exists()
    except OSError as error:  # a name longer than the file system allows
        raise SourceError(f"path '{str(place)[:40]}...' cannot be a file: {error.strerror}; check `path`") from None


def _instead(missing: Path) -> str:
    """What is there instead of a missing path."""
    for link in (path for path in (missing, *missing.parents) if path.is_symlink() and not path.exists()):
        name = "it" if link == missing else str(link)
        try:
            link.resolve(strict=True)
        except (RuntimeError, OSError) as error:  # a circle is the former, and a missing file the latter
            if isinstance(error, RuntimeError) or error.errno == errno.ELOOP:
                return f"{name} is a link that leads back to itself"
        return f"{name} is a link to {link.readlink()}, which does not exist"
    parent = next(parent for parent in missing.parents if parent.exists())
    if parent.is_file():
        return f"{parent} is a file, not a folder"
    root = project_root()
    where = f"relative paths start at {root}" if parent == root else f"in {parent}"
    try:
        names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in parent.iterdir())
    except PermissionError:
        return f"{parent} cannot be read: permission denied"
    visible = [entry for entry in names if not entry.startswith(".")] or names
    return f"{where}{', where' if parent == root else ''} there is {nearest(missing.relative_to(parent).parts[0], visible)}"


def digest(original: Path, name: str) -> str:
    """The SHA-256 that a copy of `original` has. `name` is its path in params.yaml. Raises `SourceError` as `copy` does."""
    try:
        if original.is_dir():
            reject_notes(_files(original, name), LFS_PULL)
        else:
            _require_file(original, name)
        return sha256(original)
    except PermissionError as error:
        raise SourceError(_denied(error)) from None


def copy(original: Path, into: Path, name: str) -> str:
    """Copy a file, or the content of a folder, to the folder `into`. Returns the SHA-256 of the copy.

    Raises:
        SourceError: it cannot be read, is empty, or has links out of it.
    """
    try:
        if not original.is_dir():
            _require_file(original, name)
            return sha256(Path(shutil.copyfile(original, into / original.name)))
        for file in _files(original, name):
            reject_notes([file], LFS_PULL)
            target = into / file.relative_to(original)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    except PermissionError as error:
        raise SourceError(_denied(error)) from None
    return sha256(into)


def _require_file(original: Path, name: str) -> None:
    if not original.is_file():
        raise SourceError(f"path '{name}' is neither a file nor a folder")
    reject_single(original, name)
    reject_notes([original], LFS_PULL)


def _files(folder: Path, name: str) -> Iterator[Path]:
    """The files of a folder. A link must lead to a file inside the folder, since the folder's hash covers no other content."""
    inside = folder.resolve()
    empty = True
    for entry in _entries(folder):
        if entry.is_symlink() and not (entry.is_file() and entry.resolve().is_relative_to(inside)):
            raise SourceError(
                f"'{entry}' links to a folder or out of '{folder}'; make a copy without links with `cp -rL`"
            )
        if entry.is_file():
            empty = False
            yield entry
        elif not entry.is_dir():
            raise SourceError(f"'{entry}' is neither a file nor a folder; remove it")
    if empty:
        raise SourceError(f"path '{name}' is a folder without files")


def _entries(folder: Path) -> list[Path]:
    """Everything below a folder, sorted. Unlike `rglob`, it does not skip a folder that cannot be read."""

    def fail(error: OSError) -> None:
        raise error

    walk = os.walk(folder, onerror=fail)
    return sorted(Path(parent, name) for parent, folders, files in walk for name in [*folders, *files])


def _denied(error: OSError) -> str:
    return f"'{error.filename}' cannot be read: permission denied; change its mode or owner, or run as a user who may"
