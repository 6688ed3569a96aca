"""The right pins of a source: what `prefdag pin` writes, and what a stage answers when they are missing."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prefdag.config.sources import DvcSource, HubSource, ImageSource, PathSource, PypiSource, UrlSource
from prefdag.runtime.artifacts import sha256
from prefdag.sources import dvc_project, hub, local, url
from prefdag.sources.pins import COMMIT, is_pin
from prefdag.sources.pypi import current_hash


def pins(source: ImageSource, *, again: bool = False) -> dict[str, Any]:
    """The right values of the pins by key: those that are missing, and the hash of a local path.

    Args:
        again: whether to fetch again what is pinned, and is not on this machine. A commit always stays.

    Raises:
        SourceError: the source is not found or not reachable.
    """
    match source:
        case PathSource():
            return {"sha256": local.digest(local.find(source.path), source.path)}
        case UrlSource() if again or not is_pin(source.sha256):
            with TemporaryDirectory() as folder:
                file = url.download(source, Path(folder))
                url.reject(source, file)
                return {"sha256": sha256(file)}
        case PypiSource() if again or not is_pin(source.sha256):
            return {"sha256": current_hash(source)}
        case DvcSource() if not is_pin(source.revision, COMMIT):
            return {"revision": dvc_project.current_commit(source)}
        case HubSource():
            return _of_hub(source, again)
    return {}


def _of_hub(source: HubSource, again: bool) -> dict[str, Any]:
    right: dict[str, Any] = {}
    if not is_pin(source.revision, COMMIT):
        right["revision"] = hub.current_commit(source)
        source, again = replace(source, revision=right["revision"]), True
    if isinstance(source.files, dict):
        names = [name for name, pinned in source.files.items() if again or not is_pin(pinned)]
        if names:
            right["files"] = hub.file_hashes(source, names)
    return right
