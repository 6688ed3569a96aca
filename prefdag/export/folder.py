"""The folder of an export: where it may be, and how an earlier export in it is removed without touching anything else.

export.json lists every file of an export with its SHA-256. A file that it does not list, or that has another hash, was put
there by somebody else, and so was a link or an empty folder. If there is any, the folder is left as it is. So is, outside the
project, an export that another project wrote: this project notes the hash of every export.json of its own.
"""

import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import json_text, project_root, scratch, sha256

FILES = "export.json"
NOTED = "exports.sha256"  # in the scratch folder: the hash of the export.json of every export that this project wrote
HASH = re.compile(r"[0-9a-f]{64}")
REMEDY = "choose another folder with --to"


def check_place(target: Path, outs: list[Path]) -> Path:
    """The absolute path of `target`, if an export may be written there. Nothing is changed.

    Args:
        outs: the outputs of the pipeline's stages. DVC would delete an export in one of them.

    Raises:
        DataError: it is a link, a file, part of a stage's output, or a folder with anything that is not an earlier export's.
    """
    try:
        if target.is_symlink():
            raise DataError(f"{target}: is a symbolic link; {REMEDY}, such as the one it points to")
        place = target.resolve()
        place.exists()
    except RuntimeError:
        raise DataError(f"{target}: its path leads through a loop of symbolic links; {REMEDY}") from None
    except OSError as error:  # such as a name that is too long
        raise DataError(f"{str(target)[:60]}: {error.strerror}; {REMEDY}") from None
    if place in (Path.cwd(), *Path.cwd().parents, Path.home().resolve()):
        raise DataError(f"{target}: is not a folder for an export alone; {REMEDY}")
    for out in outs:
        if Path(os.path.realpath(out)) in (place, *place.parents):  # unlike resolve, it takes a loop of links
            raise DataError(f"{target}: {out} is an output of a stage, which DVC replaces; {REMEDY}")
    above = next(parent for parent in place.parents if parent.exists())
    if not above.is_dir():
        raise DataError(f"{target}: {above} is not a folder; {REMEDY}")
    if not os.access(above, os.W_OK | os.X_OK):
        raise DataError(f"{target}: no permission to write in {above}; {REMEDY}")
    if place.exists():
        check_owned(place, target)
    return place


def check_owned(folder: Path, shown: Path | None = None) -> list[Path]:
    """The files and folders of the export in `folder`, so that each comes after those in it; export.json is the last file.

    Args:
        shown: what to call the folder in a message.

    Raises:
        DataError: the folder holds anything that its export.json does not list with its hash, or it is outside this project
            and has an export that this project did not write.
    """
    shown = shown or folder
    if not folder.is_dir():
        raise DataError(f"{shown}: is not a folder; {REMEDY}")
    hashes = _listed(folder / FILES)
    if hashes and not folder.resolve().is_relative_to(project_root()) and sha256(folder / FILES) not in _noted():
        raise DataError(f"{shown}: has an export of another project; {REMEDY}, or remove it")
    if hashes is None and any(folder.iterdir()):
        raise DataError(f"{shown}: exists and is not an export of this version; {REMEDY}, or remove it")
    names = [*sorted(hashes or ()), *([FILES] if hashes else [])]
    own = {Path(name): hash_ for name, hash_ in (hashes or {}).items()}
    folders = {parent for name in own for parent in name.parents}
    for path in _everything(folder):
        name = path.relative_to(folder)
        mode = path.lstat().st_mode
        if name == Path(FILES) or (stat.S_ISDIR(mode) and name in folders):
            continue
        if name not in own or not stat.S_ISREG(mode):
            raise DataError(f"{shown / name}: not part of the last export; move it away, or {REMEDY}")
        if sha256(path) != own[name]:
            raise DataError(f"{shown / name}: changed since it was exported; move it away, or {REMEDY}")
    inner = sorted((each for each in folders if each != Path()), key=lambda each: len(each.parts), reverse=True)
    return [
        *(folder / name for name in names[:-1]),
        *(folder / each for each in inner),
        *(folder / n for n in names[-1:]),
    ]


def clear(folder: Path) -> None:
    """Remove the export in `folder`, and the folder. Raises `DataError` before anything is removed, as `check_owned`.

    Files are removed one by one, and folders only if they are empty. So what appears in the folder meanwhile stays there.
    export.json goes last: after a kill the rest is still known as an export.
    """
    for path in check_owned(folder):
        with suppress(FileNotFoundError):  # removed by the user, or before a kill
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()
    folder.rmdir()


def note(folder: Path) -> None:
    """Remember the export in `folder` as one of this project, wherever it will be. Call it before it gets its name."""
    path = scratch(NOTED)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as lines:
        lines.write(f"{sha256(folder / FILES)}\n")


def _noted() -> set[str]:
    path = scratch(NOTED)
    return set(path.read_text("utf-8", "replace").split()) if path.exists() else set()


def _everything(folder: Path) -> Iterator[Path]:
    """All files, links and folders below `folder`. Links are not followed."""
    for root, folders, files in os.walk(folder, onerror=_refuse):
        for name in sorted((*folders, *files)):
            yield Path(root, name)


def _refuse(error: OSError) -> None:
    raise error


def _listed(path: Path) -> dict[str, str] | None:
    """The hashes in export.json by file; None if it is not, byte for byte, what an export writes."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return None
        text = path.read_text("utf-8")
        listed = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(listed, dict) or not listed or json_text(listed) != text:
        return None
    plain = all(isinstance(hash_, str) and HASH.fullmatch(hash_) for hash_ in listed.values())
    inside = all(Path(name).parts and ".." not in Path(name).parts and not Path(name).is_absolute() for name in listed)
    return listed if plain and inside else None
