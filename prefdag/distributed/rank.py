"""The rank of this process among those that a launcher started for one stage. Importing it costs nothing."""

import os


def rank() -> int:
    """0 for the first process, or if it is the only one. Only that one writes, tracks and holds locks."""
    return int(os.environ.get("RANK", "0"))
