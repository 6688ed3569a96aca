"""Compare what was fetched with its pin in params.yaml, and word the errors."""

import difflib
from collections.abc import Iterable

from prefdag.lifecycle.errors import SourceError


def check_hash(file: str, *, actual: str, pinned: str) -> None:
    """Check that `file` has the pinned SHA-256. Raises `SourceError`."""
    if actual != pinned:
        raise SourceError(f"sha256 is {pinned}, but {file} has {actual}; pin that if the change is intended")


def not_found(what: str, name: str, names: Iterable[str]) -> SourceError:
    """The error that `what` was not found, with the existing `names` that are closest to `name`."""
    existing = list(names)
    closest = difflib.get_close_matches(name, existing, n=3, cutoff=0.3) or existing[-3:]
    return SourceError(f"{what}: not found; there is {', '.join(closest) or 'nothing'}")


def one_line(error: BaseException) -> str:
    """A library's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__
