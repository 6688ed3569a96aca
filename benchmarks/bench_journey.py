"""What a user waits for: a whole run, and an experiment with another beta. How much of it is training, scoring and sampling.

    python -m benchmarks.bench_journey PROFILE [--rounds N] [--folder FOLDER]

PROFILE is `default`, `tiny` or another profile, which runs in a clone of the committed project: in a temporary folder, or in
FOLDER, which stays. An experiment runs both DPO trainings again and all that follows them. Its stages are forks of a process
with their libraries, or import these themselves. Results go to benchmarks/bench_journey.csv, in place of those of the profile.
"""

import argparse
import shlex
import sys
import tempfile
from pathlib import Path

import pandas as pd

from benchmarks.bench_pipeline import clone_with
from benchmarks.harness import Contender, end_in_one_line, markdown, positive, run_rounds, summarise, write
from prefdag.runtime.dvc_files import target

RESULTS = Path(__file__).with_name("bench_journey.csv")
SITE = Path(__file__).with_name("journey_site")
REPRO = [sys.executable, "-m", "dvc", "repro"]
AGAIN = [*REPRO, "--force", "--no-run-cache", "--downstream", "dpo_text", target("dpo_image")]
WHOLE, BETA, ALONE = "whole run", "another beta", "another beta, imported by each stage"
# What git does not know is what a run makes, with the cache and the MLflow store. MLflow's writes are part of the run.
COMMANDS = {WHOLE: f"git clean -fdxq && {shlex.join(REPRO)}", BETA: shlex.join(AGAIN), ALONE: shlex.join(AGAIN)}
# Prints the seconds in the file of `sitecustomize`, and removes it.
WORK = "import os, json, pathlib; p = pathlib.Path(os.environ['PREFDAG_WORK']); "
WORK += "print(json.dumps({'work_seconds': sum(map(float, p.read_text().split()))})); p.unlink()"


def journeys(profile: str, rounds: int, clone: Path | None) -> pd.DataFrame:
    """Time the contenders in a clone, round after round."""
    with tempfile.TemporaryDirectory() as name:
        clone = clone.absolute() if clone else Path(name, "clone")
        clone_with(profile, clone)
        env = {
            "PYTHONPATH": f"{clone}:{SITE}",
            "PREFDAG_WORK": str(Path(name, "work")),
            "DVC_SITE_CACHE_DIR": str(Path(name, "site")),
            "MLFLOW_TRACKING_URI": "",  # keep its runs out of the user's MLflow
        }
        end = f"> /dev/null && {shlex.join([sys.executable, '-c', WORK])}"
        contenders = [
            Contender(
                what, ["sh", "-c", f"{command} {end}"], clone, env | ({"PREFDAG_WARM": "off"} if what == ALONE else {})
            )
            for what, command in COMMANDS.items()
        ]
        frame = run_rounds(contenders, rounds)
    # The peak that the harness sees is that of DVC itself.
    return frame[frame["metric"] != "peak_rss_gb"]


def with_shares(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with each run's `share_outside`: the share of its time in which it neither trains, scores nor samples."""
    runs = frame.pivot(index=["round", "contender"], columns="metric", values="value").reset_index()
    runs["share_outside"] = 1 - runs["work_seconds"] / runs["wall_seconds"]
    return runs.melt(["round", "contender"], var_name="metric")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--folder", type=Path, help="a new folder to run in")
    arguments = parser.parse_args()
    summary = summarise(with_shares(journeys(arguments.profile, arguments.rounds, arguments.folder)), ALONE)
    summary = summary[summary["what"] != f"{WHOLE} / {ALONE}"]
    write(RESULTS, summary, prefix=f"{arguments.profile}, ")
    print(markdown(summary))


if __name__ == "__main__":
    end_in_one_line(main)
