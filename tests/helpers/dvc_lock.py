"""A dvc.lock as DVC writes it, for outputs that a test made."""

import json
from pathlib import Path
from typing import Any

from prefdag.runtime.hashing import dvc_hash


def write_lock(*outputs: Path, root: Path = Path(), **stages: Any) -> None:
    """Record `outputs` as they are below `root`, as those of one stage, beside other `stages`. JSON is YAML."""
    outs = [{"path": path.as_posix(), "md5": dvc_hash(root / path)} for path in outputs]
    (root / "dvc.lock").write_text(
        json.dumps({"schema": "2.0", "stages": {"make": {"cmd": "make", "outs": outs}, **stages}})
    )
