"""The pipeline's overhead: a `dvc repro` that has nothing to do, and the imports of every stage.

    python -m benchmarks.bench_pipeline FOLDER [--rounds N]

FOLDER is a clone of the project in which `dvc repro` has run. There `dvc repro` is timed, five times per round, against the
same command in a repository with as many stages that do nothing. Then the tiny profile runs stage by stage, without DVC, in a
clone of the committed project. Results go to benchmarks/bench_pipeline.csv.
"""

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from benchmarks.harness import Contender, end_in_one_line, markdown, positive, run_rounds, summarise, write
from prefdag.lifecycle.errors import DataError, PrefdagError
from prefdag.runtime.dvc_files import files, read_dag

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("bench_pipeline.csv")
NO_OPS = 5  # per round: each takes a second, and the machine's speed varies
DVC = [sys.executable, "-m", "dvc"]
NO_OP = f"{shlex.join([*DVC, 'repro'])} > /dev/null && echo '{{}}'"


def nothing_to_do(folder: Path, rounds: int) -> pd.DataFrame:
    """Time a `dvc repro` in `folder` against one in an empty DAG with as many stages, both up to date.

    Raises `DataError` if `folder` is not up to date.
    """
    if not (folder / "dvc.yaml").is_file() or subprocess.run([*DVC, "status", "--quiet"], cwd=folder).returncode:
        raise DataError(f"{folder}: not an up-to-date clone of the project; run `dvc repro` there first")
    with tempfile.TemporaryDirectory() as empty:
        empty_dag(Path(empty), len(read_dag(folder / "dvc.yaml")))
        names = {"done pipeline": folder, "empty DAG": Path(empty)}
        contenders = [Contender(name, ["sh", "-c", NO_OP], where) for name, where in names.items()]
        return summarise(run_rounds(contenders, rounds), "empty DAG")


def empty_dag(folder: Path, stages: int) -> None:
    """Make a repository with this project's DVC settings, whose stages pass on a one-byte file, and run it once."""
    call(["git", "init", "--quiet"], folder)
    call([*DVC, "init", "--quiet"], folder)
    shutil.copy(ROOT / ".dvc/config", folder / ".dvc/config")
    (folder / "file0").write_text("0")
    dag = {
        f"stage{i}": {"cmd": f"cp file{i} file{i + 1}", "deps": [f"file{i}"], "outs": [f"file{i + 1}"]}
        for i in range(stages)
    }
    (folder / "dvc.yaml").write_text(json.dumps({"stages": dag}))
    call([*DVC, "repro"], folder)


def tiny(rounds: int) -> pd.DataFrame:
    """Time the stages of the tiny profile one by one, in the order in which DVC runs them."""
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name)
        clone_with("tiny", clone, recorded=False)
        printed = call([*DVC, "repro", "--dry", "--force"], clone)
        order = re.findall(r"^Running stage '(?:\S+:)?(\S+)'", printed, re.MULTILINE)
        dag = read_dag(clone / "dvc.yaml")
        off = {name: ["sh", "-c", f"{dag[name]['cmd']} && echo '{{}}'"] for name in order if "@" in name}  # of rounds
        env = {"DVC_ROOT": str(clone), "MLFLOW_TRACKING_URI": ""}  # keep its runs out of the user's MLflow
        script = ROOT / "benchmarks/timed_stage.py"
        contenders = [Contender(stage, off.get(stage, [sys.executable, script, stage]), clone, env) for stage in order]
        return summarise(run_rounds(contenders, rounds))


def clone_with(profile: str, folder: Path, recorded: bool = True) -> None:
    """Clone the committed project into a new or empty folder, and write a profile into its params.yaml.

    Args:
        recorded: whether with dvc.lock. A stage that runs without DVC refuses inputs with other hashes than it has.
    """
    call(["git", "clone", "--quiet", str(ROOT), str(folder)], ROOT)
    for lock in [] if recorded else files(folder / "dvc.lock"):
        lock.unlink()
    call([sys.executable, "-c", f"from prefdag.project.profiles import apply; apply({profile!r})"], folder)


def call(command: list[str], folder: Path) -> str:
    """The output of `command`, run in `folder`. Raises `PrefdagError` if it fails."""
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise PrefdagError(f"{shlex.join(command)}: ended with exit code {done.returncode}")
    return done.stdout


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=positive, default=5)
    arguments = parser.parse_args()
    summary = pd.concat([nothing_to_do(arguments.folder, NO_OPS * arguments.rounds), tiny(arguments.rounds)])
    write(RESULTS, summary)
    print(markdown(summary))


if __name__ == "__main__":
    end_in_one_line(main)
