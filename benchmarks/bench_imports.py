"""An experiment with another beta, whose stages are forks of a process with their libraries, or import these themselves.

    python -m benchmarks.bench_imports FOLDER [--rounds N]

FOLDER is a clone of the project in which `dvc repro` has run, of the tiny profile say. There the two DPO trainings and all that
follows them run again. Results go to benchmarks/bench_imports.csv.
"""

import argparse
import shlex
import sys
from pathlib import Path

from benchmarks.harness import Contender, end_in_one_line, markdown, positive, run_rounds, summarise, write
from prefdag.lifecycle.errors import DataError

RESULTS = Path(__file__).with_name("bench_imports.csv")
REPRO = [sys.executable, "-m", "dvc", "repro", "--force", "--no-run-cache", "--downstream", "dpo_text", "dpo_image"]
CONTENDERS = {"imported once": {}, "imported by each stage": {"PREFDAG_WARM": "off"}}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=positive, default=3)
    arguments = parser.parse_args()
    if not (arguments.folder / "models/dpo_text").is_dir():
        raise DataError(f"{arguments.folder}: not a clone of the project in which `dvc repro` has run")
    command = ["sh", "-c", f"{shlex.join(REPRO)} > /dev/null && echo '{{}}'"]
    env = {"PYTHONPATH": str(arguments.folder.absolute())}
    contenders = [Contender(name, command, arguments.folder, env | own) for name, own in CONTENDERS.items()]
    frame = run_rounds(contenders, arguments.rounds)
    # The peak that the harness sees is that of DVC itself.
    summary = summarise(frame[frame["metric"] == "wall_seconds"], "imported by each stage")
    write(RESULTS, summary)
    print(markdown(summary))


if __name__ == "__main__":
    end_in_one_line(main)
