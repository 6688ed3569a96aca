"""Progress bars with the remaining time, which do not flood a log."""

import sys
from typing import Any

from tqdm import tqdm


def progress(total: int | None, unit: str, name: str = "", initial: int = 0, **options: Any) -> tqdm:
    """A progress bar on stderr: live on a terminal or in a notebook, otherwise one line every ten seconds."""
    live = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(
        total=total,
        initial=initial,
        unit=unit,
        desc=name,
        dynamic_ncols=live,
        mininterval=0.2 if live else 10,
        **options,
    )
