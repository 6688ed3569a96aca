"""DPO training of language models on a GPU in bfloat16: ours against TRL's DPOTrainer. `make bench-gpu` runs it.

    python -m benchmarks.bench_gpu [--shape 8B] [--adapter lora] [--tokens 4096] [--share 0.5] [--rounds 3]
    python -m benchmarks.gpu_page > docs/gpu.md

Models of three sizes with random weights, LoRA and all weights, rows of 512 and 4,096 tokens with prompt shares of 0.2, 0.5 and
0.8. The sides take turns; each training is a process of its own, whose first steps, which compile kernels, are not timed:

    ours       log-probabilities of the reference are computed beforehand, as in the pipeline
    trl        TRL's defaults: the reference is computed during training; gradient checkpointing; float32 weights
    trl best   the reference beforehand, Liger's layers, FlashAttention if it is installed (otherwise torch's own kernel), and
               frozen weights in bfloat16

Without gradient checkpointing, except for `trl`; what does not fit is repeated with it. All rows of a cell have the same
length, so TRL pads nothing. Results go to benchmarks/bench_gpu.csv, a line per training, and those of the checks to
benchmarks/gpu_checks.csv. A run that was stopped continues where it was.
"""

import argparse
import sys
from collections.abc import Mapping
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.gpu_cells import ADAPTER_NAMES, SHAPES, SHARES, SIDES, TOKENS, Cell
from benchmarks.harness import Contender, append, end_in_one_line, hardware, measure, positive, versions
from prefdag.lifecycle.errors import ParamsError, PrefdagError
from prefdag.lifecycle.progress import progress

RESULTS = Path(__file__).with_name("bench_gpu.csv")
CHECKS = Path(__file__).with_name("gpu_checks.csv")
MEASURED = (
    *("pairs_per_second", "tokens_per_second", "flops_share", "useful_tflops"),
    *("reference_pairs_per_second", "compiled_later", "packed", "loss_1", "loss_8", "peak_gpu_gb"),
    *("peak_rss_gb", "wall_seconds"),
)
TOO_LARGE = "does not fit into memory"


def child(device: str, *arguments: object) -> dict[str, float]:
    """What a process of `gpu_child` prints. Raises `PrefdagError` if it fails."""
    words = [sys.executable, "-m", "benchmarks.gpu_child", f"--device={device}", *map(str, arguments)]
    return measure(Contender(" ".join(map(str, arguments)), words))


def train(cell: Cell, side: str, device: str, *, checkpointing: bool) -> dict[str, Any]:
    """Train a side once, with gradient checkpointing if it does not fit without. What went wrong is a `note`."""
    options = ["--checkpointing"] if checkpointing else []
    note = ""
    try:
        found = child(device, "train", side, *cell, cell.pairs, cell.batch, *options)
    except PrefdagError as error:
        found, note = {}, str(error)
    if "out_of_memory" in found:
        if side != "trl" and not checkpointing:
            return train(cell, side, device, checkpointing=True)
        found, note = {}, TOO_LARGE
    values = {name: found.get(name, "") for name in MEASURED}
    return {**values, "checkpointing": checkpointing or side == "trl", "note": note}


def run(cells: list[Cell], rounds: int, device: str, results: Path) -> None:
    """Train what is not in the results of this machine yet. Within a cell, the sides take turns."""
    machine = {"hardware": hardware(), "versions": with_kernels()}
    with progress(len(cells) * rounds * len(SIDES), "training") as bar:
        for cell, number, side in product(cells, range(rounds), SIDES):
            before = earlier(results, machine, cell, side)
            if number not in before and TOO_LARGE not in before.values():
                known = "checkpointing" in before.values()
                row = train(cell, side, device, checkpointing=known)
                append(results, {**cell._asdict(), "side": side, "round": number, **row, **machine})
            bar.update()


def earlier(results: Path, machine: Mapping[str, str], cell: Cell, side: str) -> dict[int, str]:
    """By round, how earlier trainings of a side on this machine ended: their note, "checkpointing" or ""."""
    if not results.exists():
        return {}
    rows = pd.read_csv(results, keep_default_na=False)
    wanted = {**cell._asdict(), "side": side, **machine}
    rows = rows[(rows[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    ends = rows["note"].where(rows["note"] != "", rows["checkpointing"].map({True: "checkpointing", False: ""}))
    return dict(zip(rows["round"], ends, strict=True))


def check(shape: str, tokens: int, device: str, path: Path) -> None:
    """Compare FlexAttention with the pieces, and count what is compiled late, unless that is done."""
    machine = {"hardware": hardware(), "versions": with_kernels()}
    done = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["check", *machine])
    for name, arguments in {"attention": (), f"compiled, {shape}": (shape, tokens)}.items():
        same = (done["check"] == name) & (done["hardware"] == machine["hardware"])
        if (same & (done["versions"] == machine["versions"])).any():
            continue
        try:
            found = child(device, name.partition(",")[0], *arguments)
        except PrefdagError as error:
            append(path, {"check": name, "metric": str(error), "value": "", **machine})
            continue
        for metric, value in found.items():
            if metric not in ("peak_rss_gb", "wall_seconds"):
                append(path, {"check": name, "metric": metric, "value": value, **machine})


def with_kernels() -> str:
    """The versions, with those of TRL's kernels, or that they are not installed."""
    parts = [versions()]
    for package in ("liger-kernel", "flash-attn"):
        try:
            parts.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            parts.append(f"{package} not installed")
    return ", ".join(parts)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, help="one model instead of the three")
    parser.add_argument("--adapter", choices=ADAPTER_NAMES)
    parser.add_argument("--tokens", type=positive, help="of a row, instead of 4,096 and 512")
    parser.add_argument("--share", type=float, help="the prompt's share of a row, instead of 0.5, 0.2 and 0.8")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--checks", type=Path, default=CHECKS)
    args = parser.parse_args()
    if args.device == "cpu" and {args.results, args.checks} & {RESULTS, CHECKS}:
        raise ParamsError(
            "--device cpu: give --results and --checks; figures of a CPU have no place among those of GPUs"
        )
    if args.device == "cuda" and "NVIDIA" not in hardware():
        raise PrefdagError("no GPU was found; --shape tiny --device cpu tries the benchmark without one")
    shapes = [args.shape] if args.shape else [shape for shape in SHAPES if shape != "tiny"]
    adapters = [args.adapter] if args.adapter else ADAPTER_NAMES
    tokens, shares = [args.tokens] if args.tokens else TOKENS, [args.share] if args.share else SHARES
    check(shapes[-1], min(tokens), args.device, args.checks)
    run([Cell(*each) for each in product(shapes, adapters, tokens, shares)], args.rounds, args.device, args.results)


if __name__ == "__main__":
    end_in_one_line(main)
