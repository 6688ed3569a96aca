"""Progress bars with the remaining time, which do not flood a log."""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(total: int | None, unit: str, name: str = "", initial: int = 0, **options: Any) -> tqdm:
    """A progress bar on stderr: live on a terminal or in a notebook, otherwise one line every ten seconds."""
    terminal = sys.stderr.isatty()
    live = terminal or "ipykernel" in sys.modules
    # Some terminals, those of containers for instance, say that they have no rows and columns, where tqdm would show nothing.
    unsized = terminal and 0 in os.get_terminal_size(sys.stderr.fileno())
    size: dict[str, Any] = {"ncols": 80, "nrows": 24} if unsized else {"dynamic_ncols": live}
    return tqdm(
        total=total,
        initial=initial,
        unit=unit,
        desc=name,
        **size,
        mininterval=0.2 if live else 10,
        **options,
    )


def tracked(items: Iterable[T], unit: str, name: str, total: int | None = None, each: int = 1) -> Iterator[T]:
    """The items, with a progress bar if they take longer than two seconds. It ends when the loop ends, however it does.

    Args:
        each: units of an item; the last one may have fewer.
    """
    with progress(total, unit, name, delay=2, unit_scale=each > 1 and each) as bar:
        for item in items:
            yield item
            bar.update()
