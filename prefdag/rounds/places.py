"""Where the stages of a round read and write. They name their paths as dvc.yaml does, with `${...}` for what differs."""

from pathlib import Path

from prefdag.runtime.dvc_files import filled

FIRST = "models/dpo_text"  # the policy before round 1


def policies_before(number: int) -> list[Path]:
    """The policy before a round, last, and those before it: DVC has made all of them."""
    return [Path(FIRST), *(Path(f"models/rounds/{earlier}") for earlier in range(1, number))]


def place(path: Path, number: int) -> Path:
    """A path of a round's stage. A test compares it with what DVC makes of it, under `foreach` in dvc.yaml."""
    before = policies_before(number)[-1]
    return Path(filled(str(path), {"key": str(number), "item.before": str(before), "item.last": str(number - 1)}))
