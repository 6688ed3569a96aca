"""How long each stage took to make the outputs that are in the working tree now."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefdag.lifecycle.launcher import rank
from prefdag.runtime.artifacts import read_json, scratch, writing
from prefdag.runtime.dvc_files import names, read_dag, read_stage

PROBE = 2**20  # bytes hashed at either end of a large file


def note_duration(name: str, seconds: float) -> None:
    """Record how long a stage took, in the scratch folder that experiments share, under a hash of its outputs.

    A duration is not part of an output: the output would then differ with every rebuild. Only the first of several
    processes writes.
    """
    if rank() > 0 or not Path("dvc.yaml").exists():
        return
    with writing(_path(name, read_stage(name))) as path:
        path.write_text(json.dumps({"seconds": round(seconds, 3)}), "utf-8")


def durations() -> dict[str, float | None]:
    """Seconds that each stage took, in the order of dvc.yaml; None if this repository never produced these outputs.

    Also covers outputs that DVC restored from its cache, and those of other experiments.
    """
    paths = {name: _path(name, entry) for name, entry in read_dag().items()}
    return {name: float(read_json(path)["seconds"]) if path.exists() else None for name, path in paths.items()}


def _path(name: str, entry: Mapping[str, Any]) -> Path:
    """The record for a stage's outputs, keyed by their names, sizes and bytes; of a large file, the bytes at either end."""
    digest = hashlib.sha256()
    for out in map(Path, names(entry, "outs", "metrics")):
        for file in sorted(path for path in (out, *out.rglob("*")) if path.is_file()):
            size = file.stat().st_size
            with file.open("rb") as stream:
                head = stream.read(PROBE)
                stream.seek(max(0, size - PROBE))
                digest.update(f"{file.as_posix()}\0{size}\0".encode() + head + stream.read())
    return scratch("durations", f"{name}-{digest.hexdigest()[:16]}.json")
