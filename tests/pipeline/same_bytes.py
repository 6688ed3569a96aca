"""Whether a code change changes an output of the tiny pipeline: compares a Git revision with the code in this folder.

    python tests/pipeline/same_bytes.py REVISION

Prints each file of data/, models/ and reports/ that is only in one of the two or has different bytes, and for a text the number
of changed lines. Hashes of artefacts in the report and the card are ignored. The exit code is 1 if anything differs. It takes
about five minutes.
"""

import argparse
import difflib
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from clones import clone, run_in
from full_disk import outs

from prefdag.runtime.dvc_files import read_dag

ROOT = Path(__file__).parents[2]
TEXT = {".html", ".md", ".json", ".csv", ".svg", ".txt"}


def built(folder: Path, revision: str | None) -> dict[str, bytes]:
    """The content of every output of the tiny pipeline by path, made in `folder` at `revision`; None: with the code here."""
    clone(ROOT, folder)
    if revision:
        run_in(folder, "git", "checkout", "--quiet", "--detach", revision)
    for command in (["prefdag", "profile", "tiny"], ["dvc", "repro"]):
        run_in(folder, *command, PYTHONPATH=str(folder))
    stages = read_dag(folder / "dvc.yaml")
    paths = [folder / out for stage in stages for out in outs(folder, stage)]
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    return {file.relative_to(folder).as_posix(): content(file) for file in files}


def content(file: Path) -> bytes:
    """A file's bytes. In a text, the hashes of artefacts are replaced."""
    raw = file.read_bytes()
    return re.sub(rb"\b[0-9a-f]{64}\b", b"HASH", raw) if file.suffix in TEXT else raw


def difference(path: str, before: bytes | None, after: bytes | None) -> str | None:
    """The line to print about a file; None if it did not change."""
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
