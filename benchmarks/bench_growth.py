"""Time and memory of each stage against the size of its input: rows, tokens a row, vocabulary, rank, images.

    python -m benchmarks.bench_growth [--axis rows] [--rounds 2] [--most 1000]    continues where it stopped
    python -m benchmarks.growth_page > docs/growth.md                               the page and its figure

A project per size runs stage by stage, on rows of random words and a small model with random weights (`growth_project.py`).
Each stage is a fork of a process that has imported the libraries, as in a `dvc repro`, so `seconds` (and `cpu_seconds`, which
depend less on what else the machine does) are those of its work, and `peak_mb` is the most resident memory beyond that of the
libraries. Results go to benchmarks/bench_growth.csv, a line per stage. Linux only.
"""

import argparse
import gc
import importlib
import json
import math
import os
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.growth_project import Size, write_project
from benchmarks.harness import append, end_in_one_line, hardware, positive, resident, versions
from prefdag.lifecycle.errors import PrefdagError
from prefdag.lifecycle.progress import progress
from prefdag.lifecycle.warm import FORKED
from prefdag.lifecycle.zygote import LIBRARIES

RESULTS = Path(__file__).with_name("bench_growth.csv")
GATE = ("download_pairs", "download_evals", "validate_pairs", "format_pairs")
TEXT = (
    *("sft_ref", "ref_logps", "ref_evals", "reward_model", "dpo_text", "control_text", "ref_answers"),
    *("select_policy", "health_text", "evaluate_text", "answer_text", "judge_text"),
)
IMAGE_GATE = ("download_images", "validate_images", "label_pairs")
IMAGE = (
    *("download_resnet", "resnet_warmup", "reward_model_image", "control_image", "dpo_image"),
    *("health_image", "evaluate_image"),
)
FEW = Size(rows=64)  # what is varied makes rows expensive
# By axis, the sizes, the project that they vary, and the stages that are timed there.
AXES: dict[str, tuple[tuple[int, ...], Size, tuple[str, ...]]] = {
    "rows": ((125, 250, 500, 1_000, 2_000), Size(), (*GATE, *TEXT, *IMAGE_GATE, *IMAGE, "report", "publish")),
    "tokens": ((64, 128, 256, 512, 1_024, 2_048), FEW, (*GATE, *TEXT)),
    "many rows": ((10_000, 20_000, 40_000, 80_000, 160_000), Size(), GATE),
    "vocabulary": ((32_000, 64_000, 128_000, 256_000), FEW, (*GATE, *TEXT)),
    "rank": ((2, 8, 32, 128), Size(), (*GATE, *TEXT)),
    "images": ((1_000, 2_000, 4_000, 8_000, 16_000), Size(), IMAGE_GATE),
}


def size_of(axis: str, value: int) -> Size:
    """The size of a project: `value` along the axis; the axis rows has as many images as pairs."""
    varied = {axis.rpartition(" ")[2]: value} | ({"images": value} if axis == "rows" else {})
    return AXES[axis][1]._replace(**varied)


def run_point(axis: str, value: int) -> list[dict[str, object]]:
    """Run the stages of a project of this size, one after the other. Returns a row for each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        forked(write_project, folder, size_of(axis, value))  # what it leaves in memory, stages would find and reuse
        run_forked("hash_code", folder)  # reads no row
        return [{"stage": stage, **run_forked(stage, folder)} for stage in AXES[axis][2]]


def run_forked(stage: str, folder: Path) -> dict[str, float]:
    """The seconds and the memory of a stage in `folder`. Raises `PrefdagError` if it fails."""
    try:
        return dict(forked(run_here, stage, folder))
    except ChildProcessError as error:
        last = (folder / "log").read_text("utf-8").strip().rpartition("\n")[2]
        raise PrefdagError(f"{stage}: {error}: {last}") from None


def forked(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a fork of this process. Raises `ChildProcessError` if it fails."""
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        code = 1
        try:
            os.write(writer, json.dumps(function(*arguments)).encode())
            code = 0
        except BaseException as error:
            if not isinstance(error, SystemExit):  # of a stage, which has said why
                traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as stream:
        returned = stream.read()
    _, status = os.waitpid(pid, 0)
    if status:
        raise ChildProcessError(f"ended with exit code {os.waitstatus_to_exitcode(status)}")
    return json.loads(returned)


def run_here(stage: str, folder: Path) -> dict[str, float]:
    """Run a stage in this process, with its output in the file `log`."""
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(folder)
    os.environ |= {FORKED: "1", "MLFLOW_TRACKING_URI": ""}  # keep its runs out of the user's MLflow
    sys.argv = [stage]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    base, start, used = resident("VmRSS"), time.perf_counter(), cpu_seconds()
    importlib.import_module(f"stages.{stage}").main.run()
    times = {"seconds": time.perf_counter() - start, "cpu_seconds": cpu_seconds() - used}
    return {**times, "peak_mb": (resident("VmHWM") - base) / 1e6}


def cpu_seconds() -> float:
    """What this process and those that it waited for have used."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def measured(results: Path, machine: dict[str, str]) -> set[tuple[int, str, int]]:
    """The rounds, axes and sizes that are in the results of this machine."""
    if not results.exists():
        return set()
    rows = pd.read_csv(results)
    rows = rows[(rows["hardware"] == machine["hardware"]) & (rows["versions"] == machine["versions"])]
    return set(zip(rows["round"], rows["axis"], rows["size"], strict=True))


def run(axes: Sequence[str], rounds: int, results: Path = RESULTS, most: float = math.inf) -> None:
    """Measure what is not measured yet, of sizes up to `most`. All sizes of an axis take turns, round after round."""
    machine = {"hardware": hardware(), "versions": versions()}
    done = measured(results, machine)
    points = [(i, axis, value) for axis in axes for i in range(rounds) for value in AXES[axis][0] if value <= most]
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()
    with progress(len(points), "project") as bar:
        for number, axis, value in points:
            if (number, axis, value) not in done:
                for row in run_point(axis, value):
                    append(results, {"axis": axis, "size": value, "round": number, **row, **machine})
            bar.update()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axis", choices=AXES, help="this one only")
    parser.add_argument("--rounds", type=positive, default=2)
    parser.add_argument(
        "--most", type=positive, default=math.inf, help="leave larger sizes out, which take most of the time"
    )
    args = parser.parse_args()
    run([args.axis] if args.axis else list(AXES), args.rounds, most=args.most)


if __name__ == "__main__":
    end_in_one_line(main)
