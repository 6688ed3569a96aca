"""Run a stage on a nearly full disk, in its own mount namespace, and print the outcome as JSON.

    unshare --map-root-user --mount python full_disk.py FOLDER STAGE FREE PLACE

The project in FOLDER is not changed: everything the stage writes goes to an overlay in memory with FREE bytes left. PLACE is an
empty folder to mount it at.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from prefdag.runtime.artifacts import remove
from prefdag.runtime.dvc_files import read_dag

SPARE = 8 * 2**20  # size of the file system in addition to FREE; it is filled


def mount(kind: str, options: str, place: Path) -> None:
    subprocess.run(["mount", "-t", kind, "-o", options, "none", place], check=True)


def outs(folder: Path, stage: str) -> list[str]:
    """The files and folders that a stage makes, from dvc.yaml."""
    entry = read_dag(folder / "dvc.yaml")[stage]
    listed = [*entry.get("outs", []), *entry.get("metrics", []), *entry.get("plots", [])]
    return [out if isinstance(out, str) else next(iter(out)) for out in listed]


def main(folder: Path, stage: str, free: int, place: Path) -> None:
    mount("tmpfs", f"size={free + SPARE}", place)
    upper, work, project = place / "upper", place / "work", place / "project"
    for folder_in_memory in (upper, work, project):
        folder_in_memory.mkdir()
    mount("overlay", f"lowerdir={folder},upperdir={upper},workdir={work},userxattr", project)
    os.chdir(project)
    targets = outs(project, stage)
    for out in targets:
        remove(Path(out))
    state = os.statvfs(place)
    with (place / "filler").open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, state.f_bavail * state.f_bsize - free)
    done = subprocess.run([sys.executable, "-m", f"stages.{stage}"], capture_output=True, text=True)
    left = [str(path) for path in Path().rglob(".*.tmp")]
    made = [out for out in targets if Path(out).exists()]
    print(json.dumps({"code": done.returncode, "stderr": done.stderr, "made": made, "left": left}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
