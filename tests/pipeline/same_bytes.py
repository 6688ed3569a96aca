"""Whether a change of the code changes an output: the tiny pipeline at a Git revision, and with the code as it is here.

    python tests/pipeline/same_bytes.py REVISION

Prints each file of data/, models/ and reports/ that one of the two lacks, or whose bytes differ; of a text, how many lines do.
The hashes of artefacts that report and card show are left out. Exit code 1 if anything differs. It takes about five minutes.
"""

import argparse
import difflib
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from clones import clone, run_in
from full_disk import outs

from prefdag.runtime.yaml import read_yaml

ROOT = Path(__file__).parents[2]
TEXT = {".html", ".md", ".json", ".csv", ".svg", ".txt"}


def built(folder: Path, revision: str | None) -> dict[str, bytes]:
    """The content of every output of the tiny pipeline, by its path, as made in `folder`; None: by the code as it is here."""
    clone(ROOT, folder)
    if revision:
        run_in(folder, "git", "checkout", "--quiet", "--detach", revision)
    for command in (["prefdag", "profile", "tiny"], ["dvc", "repro"]):
        run_in(folder, *command, PYTHONPATH=str(folder))
    stages = read_yaml(folder / "dvc.yaml")["stages"]
    paths = [folder / out for stage in stages for out in outs(folder, stage)]
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    return {file.relative_to(folder).as_posix(): content(file) for file in files}


def content(file: Path) -> bytes:
    """A file's bytes; of a text without the hashes of artefacts."""
    found = file.read_bytes()
    return re.sub(rb"\b[0-9a-f]{64}\b", b"HASH", found) if file.suffix in TEXT else found


def difference(path: str, before: bytes | None, after: bytes | None) -> str | None:
    """What to print of a file; None if it is the same."""
    if before == after:
        return None
    if before is None or after is None:
        return f"{path}: {'new' if before is None else 'gone'}"
    if Path(path).suffix not in TEXT:
        return f"{path}: other bytes"
    lines = difflib.unified_diff(before.decode().splitlines(), after.decode().splitlines(), lineterm="", n=0)
    changed = [line for line in lines if line[0] in "+-" and not line.startswith(("+++", "---"))]
    return f"{path}: {sum(line[0] == '-' for line in changed)} lines became {sum(line[0] == '+' for line in changed)}"


def main(revision: str) -> int:
    with TemporaryDirectory() as work:
        before, after = built(Path(work, "before"), revision), built(Path(work, "after"), None)
    differences = [difference(path, before.get(path), after.get(path)) for path in sorted(before.keys() | after.keys())]
    lines = [line for line in differences if line]
    print("\n".join([*lines, f"{len(differences) - len(lines)} files have the same bytes, {len(lines)} do not"]))
    return int(bool(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="what to compare with: a commit, branch or tag")
    sys.exit(main(parser.parse_args().revision))
