"""Which policy the rounds end with, and its copy. Imports no torch."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefdag.rounds.stopping import chosen_round
from prefdag.runtime.artifacts import umask

LARGE = 2**26  # bytes


def described(results: Mapping[int, Mapping[str, Any] | None]) -> dict[str, Any]:
    """The chosen round, whether its training started at its reference, so that log-ratios were zero at first, and why no
    round follows the last one that ran: `reasons`, empty if that one was good.

    Args:
        results: what evaluate_round wrote, by round; None for a round that is off.
    """
    number = chosen_round(results)
    result = results.get(number)
    at_reference = result is None or result["start"] == result["reference"]
    reasons: list[str] = next((each["reasons"] for _, each in sorted(results.items(), reverse=True) if each), [])
    return {"round": number, "at_reference": at_reference, "reasons": reasons}


def copy_model(source: Path, target: Path) -> None:
    """Copy a folder. Large files become hard links where that is possible: stages replace files, and never change them."""
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        # A link of DVC to its cache is read-only, and must stay so.
        plain = not path.is_symlink() and path.stat().st_mode & 0o777 == 0o666 & ~umask()
        if plain and path.stat().st_size >= LARGE:
            try:
                os.link(path, copy)
                continue
            except OSError:  # the file system has no such links
                pass
        shutil.copyfile(path, copy)
