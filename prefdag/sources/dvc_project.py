"""Fetch a file or folder of another DVC project at a commit, through DVC's own file system."""

import hashlib
import logging
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from prefdag.lifecycle.errors import SourceError
from prefdag.runtime.artifacts import project_root
from prefdag.sources.contents import reject_notes
from prefdag.sources.pins import COMMIT, PinError, expanded, is_pin, masked, nearest, one_line
from prefdag.sources.storage import fault

if TYPE_CHECKING:
    from prefdag.config.sources import DvcSource

logger = logging.getLogger(__name__)


def fetch_dvc(source: "DvcSource", into: Path) -> None:
    """Fetch the file, or the content of the folder. What DVC tracks is checked against the MD5 sums in its files.

    Raises:
        SourceError: the project, the commit or the path does not exist, or the project's storage lacks or damaged a file.
    """
    if source.path.endswith(".dvc"):
        raise SourceError(f"path '{source.path}' is DVC's note of a file, not the file itself; write it without .dvc")
    if not is_pin(source.revision, COMMIT):
        raise PinError(("revision",), source.revision, current_commit(source), f"'{masked(source.repo)}'", COMMIT)
    path = str(PurePosixPath("/", source.path))
    logger.info("fetching %s from %s at %s", source.path, masked(source.repo), source.revision)
    try:
        files = _open(source, source.revision)
        if not files.exists(path):
            parent = str(PurePosixPath(path).parent)
            there = [PurePosixPath(name).name for name in files.ls(parent, detail=False)] if files.isdir(parent) else []
            raise SourceError(
                f"path '{source.path}' is not in '{masked(source.repo)}'; there is {nearest(Path(path).name, there)}"
            )
        names = sorted(files.find(path)) if files.isdir(path) else [path]
        for name in names:
            target = into / (PurePosixPath(name).relative_to(path) if name != path else PurePosixPath(path).name)
            target.parent.mkdir(parents=True, exist_ok=True)
            expected = (files.info(name).get("dvc_info") or {}).get("md5")
            files.get_file(name, str(target))
            reject_notes([target], "track it with DVC there, or fetch it with Git LFS and use kind path")
            if expected is not None and _md5(target) != expected:
                raise SourceError(
                    f"'{source.path}': {target.name} is damaged in the storage of '{masked(source.repo)}'"
                )
    except SourceError:
        raise
    except OSError as error:
        if error.errno is not None and not isinstance(error, FileNotFoundError):
            raise
        raise SourceError(_missing(source, error)) from None
    except Exception as error:  # DVC's and Git's errors share no narrower class
        raise SourceError(_missing(source, error)) from None


def current_commit(source: "DvcSource") -> str:
    """The commit that the branch or tag in `revision` names now; without one, that of HEAD."""
    revision = source.revision if source.revision and source.revision.strip(".") else "HEAD"
    try:
        commit = _open(source, revision).repo.get_rev()
    except Exception as error:  # DVC's and Git's errors share no narrower class
        raise SourceError(_missing(source, error)) from None
    return str(commit)


def _open(source: "DvcSource", revision: str | None) -> Any:
    from dvc.fs import DVCFileSystem

    repo = expanded(source.repo)
    if "://" not in repo and not repo.startswith("git@"):
        repo = str(project_root() / Path(repo).expanduser())
    return DVCFileSystem(url=repo, rev=revision)


def _missing(source: "DvcSource", error: Exception) -> str:
    why = None if isinstance(error, FileNotFoundError) else fault(error)
    if "No storage files available" in str(error):  # DVC's own words
        why = "its content is neither in that project's cache nor on its remote; run `dvc push` there"
    elif "is not a git repository" in str(error):
        why = "it is not a Git repository; a local file or folder is a source of kind path"
    elif type(error).__name__ == "CloneError":
        why = "there is no such Git repository, or it does not let this machine in; check `repo`"
    why = why or masked(one_line(error), source.repo)
    return f"'{source.path}' of '{masked(source.repo)}' cannot be fetched: {why}"


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
