"""Pins: what came is what params.yaml says, or one line says what is there instead."""

import difflib
from collections.abc import Iterable

from prefdag.runtime.errors import SourceError


def check_hash(file: str, *, found: str, pinned: str) -> None:
    """That `file` has the SHA-256 that is pinned. Raises `SourceError`."""
    if found != pinned:
        raise SourceError(f"sha256 is {pinned}, {file} has {found}; put that there if the change is meant")


def absent(what: str, name: str, names: Iterable[str]) -> SourceError:
    """That `what` was not found, and which of the `names` there are come nearest."""
    there = list(names)
    near = difflib.get_close_matches(name, there, n=3, cutoff=0.3) or there[-3:]
    return SourceError(f"{what}: not found; there is {', '.join(near) or 'nothing'}")


def one_line(error: BaseException) -> str:
    """A library's message as a part of ours."""
    return " ".join(str(error).split()) or type(error).__name__
