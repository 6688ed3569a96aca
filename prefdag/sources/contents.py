"""Files that came in place of the wanted ones: notes of Git LFS and DVC, web pages, and empty files."""

from collections.abc import Iterable
from pathlib import Path

from prefdag.lifecycle.errors import SourceError

LFS = b"version https://git-lfs.github.com/spec/"
PAGES = {".html", ".htm", ".xhtml"}
START = 512  # bytes


def reject_notes(files: Iterable[Path], where: str) -> None:
    """Refuse files that only say where the wanted ones are. `where` is how to get these.

    Raises:
        SourceError: a file is a pointer of Git LFS.
    """
    for file in files:
        if start(file).startswith(LFS):
            raise SourceError(f"'{file.name}' is a pointer of Git LFS, not the file itself; {where}")


def reject_single(file: Path, shown: str) -> None:
    """Refuse a source of one file that holds no data. `shown` is its name in params.yaml. Raises `SourceError`."""
    if file.suffix == ".dvc":
        raise SourceError(f"'{shown}' is DVC's note of a file, not the file itself; write it without .dvc")
    if not file.stat().st_size:
        raise SourceError(f"'{shown}' is an empty file; check that it is the right one, and complete")


def is_page(file: Path) -> bool:
    """Whether a file is a web page, such as a sign-in form, although its name does not say so."""
    begin = start(file).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    marked = begin.startswith((b"<!doctype html", b"<html")) or (
        begin.startswith((b"<?xml", b"<!--")) and b"<html" in begin
    )
    return marked and file.suffix.lower() not in PAGES


def start(file: Path) -> bytes:
    """The first bytes of a file."""
    with file.open("rb") as stream:
        return stream.read(START)
