"""Compare what was fetched with its pin in params.yaml, and word the errors."""

import difflib
import os
import re
from collections.abc import Iterable
from typing import Any

from prefdag.lifecycle.errors import SourceError
from prefdag.lifecycle.secrets import without_secrets

SHA256, COMMIT = 64, 40  # hex digits
VARIABLE = re.compile(r"\$(\w+)")


class PinError(SourceError):
    """A pin is missing or wrong. `key` is its place in the source, and `actual` the right value."""

    def __init__(self, key: tuple[str, ...], pinned: str | None, actual: str, what: str, digits: int = SHA256) -> None:
        self.key, self.actual = key, actual
        shown = "null" if pinned is None else pinned
        advice = "write that if the change is intended" if is_pin(pinned, digits) else "write that"
        of = "" if len(key) == 1 else f": the hash of {what}"
        super().__init__(f"{key[0]}{of} is {shown}, but {what if not of else 'it'} has {key[-1]}: {actual}; {advice}")


def is_pin(pinned: str | None, digits: int = SHA256) -> bool:
    """Whether `pinned` looks like a hash; null and placeholders do not."""
    return pinned is not None and re.fullmatch(f"[0-9a-fA-F]{{{digits}}}", pinned) is not None


def check_hash(what: str, *, actual: str, pinned: str | None, key: tuple[str, ...] = ("sha256",)) -> None:
    """Check that `what` has the pinned SHA-256. Raises `PinError`."""
    if pinned is None or pinned.lower() != actual:
        raise PinError(key, pinned, actual, what)


def not_found(what: str, name: str, names: Iterable[str]) -> SourceError:
    """The error that `what` was not found, with the existing `names` that are closest to `name`."""
    return SourceError(f"{what}: not found; there is {nearest(name, names)}")


def nearest(name: str, names: Iterable[str]) -> str:
    """The `names` that are closest to `name`, or some of them if none is close."""
    existing = list(names)
    closest = difflib.get_close_matches(name, existing, n=3, cutoff=0.3) or existing[-3:]
    return ", ".join(closest) or "nothing"


def expanded(text: str) -> str:
    """`text` with the values of its environment variables, $NAME. Raises `SourceError` if one is not set."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise SourceError(f"'{masked(text)}': the environment variable {match[1]} is not set; set it and try again")
        return os.environ[match[1]]

    return VARIABLE.sub(value, text)


def masked(text: str, source: str = "") -> str:
    """`text` without users, passwords and queries of the URLs in it, and without the values of variables that `source` uses."""
    for name in VARIABLE.findall(source):
        if secret := os.environ.get(name):
            text = text.replace(secret, f"${name}")
    return re.sub(r"(\w://[^\s?'\"]*)\?[^\s'\"]+", r"\1?***", without_secrets(text))


def one_line(error: BaseException | Any) -> str:
    """A library's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__
