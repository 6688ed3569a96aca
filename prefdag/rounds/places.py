"""Where the stages of a round read and write. They name their paths as dvc.yaml does, with `${...}` for what differs."""

from pathlib import Path

from prefdag.runtime.dvc_files import filled

FIRST = "models/dpo_text"  # the policy before round 1


def place(path: Path, number: int) -> Path:
    """A path of a round's stage. A test compares it with what DVC makes of it, under `foreach` in dvc.yaml."""
    before = FIRST if number == 1 else f"models/rounds/{number - 1}"
    return Path(filled(str(path), {"key": str(number), "item.before": before, "item.last": str(number - 1)}))
