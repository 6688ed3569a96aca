"""Refuses code that changed since the stage hash_code read it: outputs would be recorded with the hashes of other code.

No stage depends on this module, since it only accepts or refuses.
"""

from pathlib import Path

from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import read_json, sha256

STAGE = "hash_code"
CODE = Path("data/code")  # a file for each script
FILES = Path("data/code.json")


def hashes_of(script: str) -> Path:
    """The file that changes with the code of a stage, which depends on it."""
    return CODE / f"{script}.json"


def check_code(script: str) -> None:
    """Check that the code of a stage is still what hash_code read. Without outputs of hash_code, nothing is checked.

    Raises:
        DataError: a module, or a file or folder that it reads, has changed, or an output of hash_code is broken.
    """
    if script == STAGE or not FILES.exists() or not hashes_of(script).exists():
        return
    files, parts = _read(FILES), _read(hashes_of(script))
    if all(Path(path).exists() and sha256(Path(path)) == files.get(path) for path in parts):
        return
    from prefdag.dependencies import code_hashes  # takes a second, so only if a file has changed: it may be a comment

    now = code_hashes(script, Path())
    changed = [path for path in sorted(now.keys() | parts.keys()) if now.get(path) != parts.get(path)]
    if changed:
        raise DataError(
            f"{changed[0]}: changed since {STAGE} read it; `dvc repro` or `python -m stages.{STAGE}` reads it again"
        )


def _read(path: Path) -> dict[str, str]:
    """Hashes by path."""
    hashes = read_json(path)
    if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
        raise DataError(f"{path}: expected hashes by path; `python -m stages.{STAGE}` writes it again")
    return hashes
