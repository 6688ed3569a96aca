"""Fetch a file at a URL, through the file system that DVC or fsspec has for its scheme. Credentials are never shown."""

import logging
import shutil
import time
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from prefdag.lifecycle.errors import SourceError
from prefdag.lifecycle.exits import FIXABLE, system_error
from prefdag.lifecycle.progress import progress
from prefdag.runtime.artifacts import sha256
from prefdag.sources.contents import is_page, reject_notes, reject_single
from prefdag.sources.pins import check_hash, expanded, is_pin, masked, one_line
from prefdag.sources.resuming import Partial, WrongPartError, kept_transfer
from prefdag.sources.storage import fault, installing

if TYPE_CHECKING:
    from prefdag.config.sources import UrlSource

PAUSES = (1.0, 4.0)  # seconds before the next attempts after a transfer that breaks off; anew whenever bytes have come
CHUNK = 2**18  # bytes
WEB = {"http", "https"}
# remote://NAME/FILE is a file on one of DVC's remotes, with the credentials in DVC's own configuration.
OF_DVC = WEB | {"s3", "gs", "azure", "oss", "ssh", "hdfs", "webhdfs", "webdav", "webdavs", "gdrive", "remote"}
ELSEWHERE = {"hf": "hub", "file": "path", "local": "path", "": "path"}

logger = logging.getLogger(__name__)


def fetch_url(source: "UrlSource", into: Path) -> None:
    """Fetch the file and check its SHA-256."""
    with kept_transfer(source) as folder:
        file = Path(shutil.move(download(source, folder), into))
    actual = sha256(file)
    if not is_pin(source.sha256) or source.sha256 != actual:  # what is pinned is wanted
        reject(source, file)
    check_hash(f"'{file.name}'", actual=actual, pinned=source.sha256)


def download(source: "UrlSource", into: Path) -> Path:
    """Fetch the file into the folder `into`, unchecked. Returns its path there.

    Raises:
        SourceError: it is not there, the server does not answer or refuses, or the disk is too small for it.
    """
    address, _, label = expanded(source.url).partition("#")
    shown = masked(source.url)
    target = into / _name(address, label, shown)
    files, path = _file_system(address, shown, source)
    logger.info("fetching %s from %s", target.name, shown)
    partial = Partial(target)
    pauses = iter(PAUSES)
    while True:
        try:
            _transfer(files, path, partial, shown)
            return target
        except SourceError:
            raise
        except Exception as error:  # the many file systems share no narrower class
            if system_error(error) in FIXABLE and not isinstance(error, PermissionError):
                raise
            if not _broke_off(error):
                raise SourceError(_reason(error, shown, source.url)) from None
            if partial.grew():
                pauses = iter(PAUSES)
            if (pause := next(pauses, None)) is None:
                raise SourceError(_reason(error, shown, source.url)) from None
        time.sleep(pause)


def _transfer(files: Any, path: str, partial: Partial, shown: str) -> None:
    """Fetch a file, or over HTTP what is missing of it."""
    import fsspec.asyn
    from fsspec.implementations.http import HTTPFileSystem

    if isinstance(files, HTTPFileSystem):
        fsspec.asyn.sync(files.loop, _answer, files, path, partial, shown)
        return
    if files.isdir(path):
        raise SourceError(f"'{shown}' is a folder; name one file, such as a .tar of the folder")
    with progress(0, "B", partial.path.name, unit_scale=True) as bar:
        files.get_file(path, str(partial.path), callback=_callback(bar, partial.path.parent, shown))


async def _answer(files: Any, path: str, partial: Partial, shown: str) -> None:
    """Ask for what is missing of a file, and write it to disk as it comes. fsspec's own transfer cannot begin in the middle."""
    session = await files.set_session()
    options = {**files.kwargs, "headers": {**files.kwargs.get("headers", {}), **partial.headers()}}
    async with session.get(files.encode_url(path), **options) as answer:
        if partial.beyond(answer.status):
            raise WrongPartError
        if answer.status == 404:
            raise FileNotFoundError(path)
        answer.raise_for_status()
        with partial.open(answer.status, answer.headers) as stream:
            have, rest = stream.tell(), answer.content_length
            if rest is not None:
                _require_room(rest, partial.path.parent, shown)
            total = None if rest is None else have + rest
            with progress(total, "B", partial.path.name, initial=have, unit_scale=True) as bar:
                async for chunk in answer.content.iter_chunked(CHUNK):
                    bar.update(stream.write(chunk))


def _name(address: str, label: str, shown: str) -> str:
    """The file's name: what follows #, or else the last part of the path."""
    name = unquote(label) or unquote(PurePosixPath(urlsplit(address).path).name)
    if not name or name in {".", ".."} or "/" in name or "\0" in name:
        raise SourceError(f"'{shown}' does not end with the name of a file; append one, as in {shown}#rows.jsonl")
    return name


def _file_system(address: str, shown: str, source: "UrlSource") -> tuple[Any, str]:
    """The fsspec file system of a URL's scheme, DVC's own if it has one, and the file's path in it."""
    import fsspec
    from dvc.config import Config
    from dvc.fs import parse_external_url
    from dvc_objects.fs.errors import RemoteMissingDepsError

    scheme = urlsplit(address).scheme
    if scheme in ELSEWHERE:
        raise SourceError(f"'{shown}': a source of kind {ELSEWHERE[scheme]} fetches it")
    try:
        if scheme in OF_DVC:
            files, path = parse_external_url(address, config=Config.from_cwd() if scheme == "remote" else None)
            return files.fs, path
        files, path = fsspec.core.url_to_fs(address)
        return files, path
    except (ImportError, RemoteMissingDepsError) as error:
        missing = f"dvc-{scheme}; install it: {installing(scheme)}" if scheme in OF_DVC else one_line(error)
        raise SourceError(f"'{shown}': {scheme}:// needs {missing}") from None
    except Exception as error:  # of the many file systems
        raise SourceError(_reason(error, shown, source.url)) from None


def _callback(bar: Any, into: Path, shown: str) -> Any:
    """Shows the progress on `bar`, and refuses a file that the disk has no room for."""
    from fsspec.callbacks import Callback

    class Progress(Callback):
        def set_size(self, size: int | None) -> None:
            _require_room(size or 0, into, shown)
            bar.total = size
            super().set_size(size)

        def relative_update(self, inc: int = 1) -> None:
            bar.update(inc)
            super().relative_update(inc)

    return Progress()


def _require_room(size: int, into: Path, shown: str) -> None:
    free = shutil.disk_usage(into).free
    if size > free:
        raise SourceError(f"'{shown}' has {size / 1e6:,.0f} MB, but the disk has only {free / 1e6:,.0f} MB left")


def _broke_off(error: Exception) -> bool:
    """Whether the transfer broke off. A refusal is final, and the client has already tried a failed connection again."""
    import aiohttp

    return isinstance(
        error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError | TimeoutError | ConnectionResetError
    )


def _reason(error: Exception, shown: str, url: str) -> str:
    if known := fault(error):
        return f"'{shown}': {known}"
    if isinstance(error, FileNotFoundError):
        return f"'{shown}' is not there; check the address"
    return f"'{shown}' cannot be fetched: {masked(one_line(error), url)}"


def reject(source: "UrlSource", file: Path) -> None:
    """Refuse what a server sent in place of the file: a sign-in form, the page around a download, a pointer, or nothing.

    Raises:
        SourceError: as said.
    """
    shown = masked(source.url)
    if is_page(file):
        raise SourceError(f"'{shown}' answers with a web page, not a file; find the address of the file itself")
    reject_single(file, shown)
    reject_notes([file], f"find the address of the file itself, in place of '{shown}'")
