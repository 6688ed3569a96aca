"""The rank of this process among those that a launcher started for one stage. Importing it costs nothing."""

import os


def started_by_launcher() -> bool:
    """Whether this process is one of several. A launcher sets both; a RANK alone is somebody else's variable."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    """0 for the first process, or if it is the only one. Only that one writes, tracks and holds locks."""
    return int(os.environ["RANK"]) if started_by_launcher() else 0
