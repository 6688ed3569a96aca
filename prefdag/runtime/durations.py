"""How long each stage took to make the outputs that lie here now."""

import hashlib
import json
import os
from pathlib import Path

from prefdag.runtime.artifacts import read_json, scratch, writing
from prefdag.runtime.yaml import read_yaml

PROBE = 2**20  # bytes at either end by which a large file is known


def note_duration(name: str, seconds: float) -> None:
    """Keep how long a stage took, in the scratch folder that experiments share, under a hash of its outputs.

    A duration is no part of an output, which would then differ from rebuild to rebuild. Only the first of several processes
    writes.
    """
    if int(os.environ.get("RANK", "0")) > 0 or not Path("dvc.yaml").exists():
        return
    with writing(_path(name)) as path:
        path.write_text(json.dumps({"seconds": round(seconds, 3)}), "utf-8")


def durations() -> dict[str, float | None]:
    """Seconds that each stage of dvc.yaml took, in its order; None if this repository never ran the stage to these outputs.

    Known also for outputs that DVC has restored since, and for those of any experiment.
    """
    paths = {name: _path(name) for name in read_yaml(Path("dvc.yaml"))["stages"]}
    return {name: float(read_json(path)["seconds"]) if path.exists() else None for name, path in paths.items()}


def _path(name: str) -> Path:
    """The note for a stage's outputs, by their names, sizes and bytes; of a large file, those at either end."""
    entry = read_yaml(Path("dvc.yaml"))["stages"][name]
    listed = [item for key in ("outs", "metrics") for item in entry.get(key, [])]
    digest = hashlib.sha256()
    for out in (Path(item if isinstance(item, str) else next(iter(item))) for item in listed):
        for file in sorted(path for path in (out, *out.rglob("*")) if path.is_file()):
            size = file.stat().st_size
            with file.open("rb") as stream:
                head = stream.read(PROBE)
                stream.seek(max(0, size - PROBE))
                digest.update(f"{file.as_posix()}\0{size}\0".encode() + head + stream.read())
    return scratch("durations", f"{name}-{digest.hexdigest()[:16]}.json")
