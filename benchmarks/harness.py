"""Times contenders in turn, round after round: a machine that slows down slows all of them.

    frame = run_rounds([Contender("ours", [sys.executable, "ours.py"]), Contender("trl", ["trl", "dpo"])], rounds=5)
    write(Path("benchmarks/bench_dpo.csv"), summarise(frame, "trl"))

Every run is a separate process. The last line of its stdout is a JSON object that maps metrics to numbers, `{}` if it has
none; `loss_N` is the loss of step N. The harness adds `wall_seconds`, and `peak_rss_gb` in 10^9 bytes.
"""

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from itertools import product
from pathlib import Path

import pandas as pd
import psutil

from prefdag.lifecycle.errors import PrefdagError
from prefdag.lifecycle.progress import progress

PACKAGES = ("torch", "transformers", "trl", "dvc")
# A small process that starts a command: on Linux a process's reported peak is never below that of its parent. And
# RUSAGE_CHILDREN of one process for all runs would be the peak of all runs so far.
LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(process.pid, 0)
seconds = time.perf_counter() - start
print("\\n" + json.dumps({"peak_rss_gb": usage.ru_maxrss * 1024 / 1e9, "wall_seconds": seconds}))
code = os.waitstatus_to_exitcode(status)
sys.exit(code if code >= 0 else 128 - code)
"""


@dataclass(frozen=True)
class Contender:
    """A command to time. `env` is added to the environment. Its stderr goes to the terminal."""

    name: str
    command: Sequence[str | Path]
    cwd: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)


def run_rounds(contenders: Sequence[Contender], rounds: int) -> pd.DataFrame:
    """Run the contenders one after another, `rounds` times.

    Returns:
        One row per value, with the columns round (from 0), contender, metric and value.

    Raises:
        PrefdagError: a command failed, or its output did not end with a JSON object of numbers.
    """
    rows = []
    with progress(rounds * len(contenders), "run") as bar:
        for number, contender in product(range(rounds), contenders):
            rows += [(number, contender.name, metric, value) for metric, value in measure(contender).items()]
            bar.update()
    return pd.DataFrame(rows, columns=["round", "contender", "metric", "value"])


def measure(contender: Contender) -> dict[str, float]:
    """The metrics that one run prints, its seconds, and the highest resident memory of any of its processes.

    Raises as `run_rounds` does.
    """
    command = [sys.executable, "-ISc", LAUNCHER, *map(str, contender.command)]
    env = {**os.environ, **contender.env}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=contender.cwd, env=env, check=False)
    if done.returncode:
        raise PrefdagError(f"{contender.name}: ended with exit code {done.returncode}; its output is above")
    printed, _, measured = done.stdout.rstrip().rpartition("\n")
    last = printed.rstrip().rpartition("\n")[2]
    try:
        return {metric: float(value) for metric, value in (json.loads(last) | json.loads(measured)).items()}
    except (ValueError, TypeError):
        raise PrefdagError(
            f"{contender.name}: the last line of its output is not a JSON object of numbers: {last[:80]!r}"
        ) from None


def summarise(frame: pd.DataFrame, *baselines: str) -> pd.DataFrame:
    """Lowest, median and highest value over the rounds.

    Args:
        frame: the result of `run_rounds`.
        baselines: contenders to compare all others with.

    Returns:
        One row per contender and metric. For every baseline, "ours / trl" has the ratios of two runs of the same round,
        and "ours - trl" compares step losses: its `loss_difference` is a round's largest absolute difference. The
        columns are what, metric, n (rounds), min, median and max.
    """
    runs = {
        str(name): rows.pivot(index="round", columns="metric", values="value")
        for name, rows in frame.groupby("contender", sort=False)
    }
    compared = {}
    for baseline, name in product(baselines, [name for name in runs if name not in baselines]):
        shared = runs[name].columns.intersection(runs[baseline].columns)
        losses = shared.str.startswith("loss_")
        ours, theirs = runs[name][shared], runs[baseline][shared]
        compared[f"{name} / {baseline}"] = (ours / theirs).loc[:, ~losses]
        if losses.any():
            difference = (ours - theirs).loc[:, losses].abs().max(axis=1)
            compared[f"{name} - {baseline}"] = difference.to_frame("loss_difference")
    rows = [
        (what, metric, values.count(), values.min(), values.median(), values.max())
        for what, table in (runs | compared).items()
        for metric, values in table.items()
    ]
    return pd.DataFrame(rows, columns=["what", "metric", "n", "min", "median", "max"])


def write(path: Path, summary: pd.DataFrame, prefix: str = "") -> None:
    """Write the summary as CSV, with the hardware and the versions. Rows whose `what` does not start with `prefix` stay."""
    table = summary.assign(what=prefix + summary["what"], hardware=hardware(), versions=versions())
    if prefix and path.exists():
        old = pd.read_csv(path)
        table = pd.concat([old[~old["what"].str.startswith(prefix)], table])
    table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")


def append(path: Path, row: Mapping[str, object], columns: Sequence[str] = ()) -> None:
    """Add a row to a CSV file of results.

    Args:
        columns: of the file, where a row may lack some; the default is those of the row.
    """
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns or list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow({name: f"{x:.6g}" if isinstance(x, float) else x for name, x in row.items()})


def resident(name: str) -> int:
    """VmRSS, what is resident now, or VmHWM, the most so far, in bytes."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("utf-8").splitlines())
    return 1024 * int(status[name].split()[0])


def hardware() -> str:
    """This machine's processor, its vectors, cores, memory and GPUs."""
    cpuinfo = Path("/proc/cpuinfo").read_text("utf-8")
    match = re.search(r"model name\s*: (.*)", cpuinfo)
    processor = match[1].strip() if match else "unknown processor"
    # A name may stand for several generations: matrix products are twice as fast with vectors that are twice as long.
    vectors = next((name for name in ("avx512f", "avx2") if re.search(rf"\b{name}\b", cpuinfo)), "no AVX2")
    parts = [processor, vectors, f"{os.cpu_count()} cores", f"{psutil.virtual_memory().total / 1e9:.0f} GB"]
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        listed = subprocess.run(query, capture_output=True, text=True, check=False)
        parts += listed.stdout.splitlines() if not listed.returncode else []
    return ", ".join(parts)


def versions() -> str:
    """The versions of Python and of those `PACKAGES` that are installed."""
    parts = [f"python {'.'.join(map(str, sys.version_info[:3]))}"]
    for package in PACKAGES:
        try:
            parts.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(parts)


def markdown(summary: pd.DataFrame, goals: Mapping[str, str] | None = None) -> str:
    """A summary as a Markdown table: one row per contender or comparison, one column per metric, and the `goals` of the rows.

    A cell is the median, with the lowest and highest value if they differ. Losses of single steps are left out.
    """
    shown = summary[~summary["metric"].str.fullmatch(r"loss_\d+")]
    metrics = sorted(set(shown["metric"]))
    headings = ["", *(metric.replace("_", " ") for metric in metrics), "n", *(["goal"] if goals else [])]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for what, rows in shown.groupby("what", sort=False):
        cells = dict(zip(rows["metric"], map(spread, rows["min"], rows["median"], rows["max"]), strict=True))
        row = [str(what), *(cells.get(metric, "") for metric in metrics), str(rows["n"].max())]
        lines.append(f"| {' | '.join([*row, *([goals.get(str(what), '')] if goals else [])])} |")
    return "\n".join(lines)


def spread(low: float, median: float, high: float) -> str:
    """The median, with the range if the values differ."""
    return rounded(median) if low == high else f"{rounded(median)} ({rounded(low)} to {rounded(high)})"


def rounded(value: float) -> str:
    """The value with three significant digits, without an exponent up to a million."""
    return f"{float(f'{value:.3g}'):g}"


def positive(text: str) -> int:
    """Parse an integer of at least 1, as the `type` of an argument."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def end_in_one_line(main: Callable[[], None]) -> None:
    """Call a benchmark's `main`. A `PrefdagError` becomes one line on stderr and the process's exit code."""
    try:
        main()
    except PrefdagError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def run_or_table(description: str, run: Callable[..., None], table: Callable[[], str], *folders: str) -> None:
    """The command line of a study: `run` with these folders, or `table`, which prints its results."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    for folder in folders:
        running.add_argument(folder, type=Path)
    commands.add_parser("table")
    arguments = vars(parser.parse_args())
    if arguments["command"] == "run":
        run(*(arguments[folder] for folder in folders))
    else:
        print(table())
