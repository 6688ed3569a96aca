"""docs/benchmarks.md, generated from the results in this folder. `make docs` writes it; a test compares the two.

python -m benchmarks.page > docs/benchmarks.md
"""

import operator
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from benchmarks.paired import end_in_one_line, markdown, rounded
from prefdag.runtime.errors import DataError

RESULTS = Path(__file__).parent
GPU_RUNS = ("small lora", "small full", "1.7B lora", "1.7B full")
SIGNS = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True)
class Goal:
    """A bound for the median of a `metric` of a contender or comparison."""

    what: str
    metric: str
    sign: Literal[">=", "<="]
    bound: float


@dataclass(frozen=True)
class Benchmark:
    """A section of the page."""

    title: str
    text: str
    goals: Sequence[Goal] = ()


BENCHMARKS: Mapping[str, Benchmark] = {
    "bench_dpo": Benchmark(
        "Training a language model",
        "This project and TRL's DPOTrainer train on the same pairs, with the same model, LoRA and batches. TRL runs with its "
        "defaults, with precomputed reference log-probabilities as here, and at its fastest, without gradient checkpointing as "
        "well. `ours sparing` takes one pair per forward pass instead of the four of a step, for the same losses with less "
        "memory. `flops share` is the useful arithmetic of a step over the sustained speed of matrix products on this machine, "
        "measured before and after the training. `loss difference` is the largest one of the first 8 steps.",
        [
            Goal("ours / trl", "pairs_per_second", ">=", 12),
            Goal("ours sparing / trl", "peak_rss_gb", "<=", 0.35),
            Goal("ours / trl precomputed", "pairs_per_second", ">=", 7),
            Goal("ours", "flops_share", ">=", 0.65),
            Goal("ours - trl", "loss_difference", "<=", 1e-5),
        ],
    ),
    "bench_gpu": Benchmark(
        "Training language models on a GPU",
        "In bfloat16, with LoRA and with all weights, a small model and one with 1.7 billion weights, trained by this project "
        "and by TRL's DPOTrainer with its defaults. `flops share` is the model FLOPs utilisation (MFU): the useful arithmetic "
        "of a step over the speed of matrix products on this GPU, measured in the same run.",
        [
            *(Goal(f"ours, {run} / trl, {run}", "tokens_per_second", ">=", 3) for run in GPU_RUNS),
            *(Goal(f"ours, {run}", "flops_share", ">=", 0.4) for run in GPU_RUNS if run.startswith("1.7B")),
        ],
    ),
    "bench_sweep": Benchmark(
        "Five betas",
        "From the reference model to five policies, end to end. `trl / ours` is the speed-up over TRL.",
        [Goal("trl / ours", "wall_seconds", ">=", 12)],
    ),
    "bench_image": Benchmark(
        "Training a classifier",
        "A DPO step of ResNet-50. Here the reference's outputs are cached, or the reference runs beside the policy; `seed` is "
        "the project this one grew from.",
        [Goal("ours-cached / seed", "images_per_second", ">=", 2.5)],
    ),
    "bench_eval": Benchmark(
        "Scoring responses",
        "Log-probabilities of the responses of an evaluation: here, and with transformers in a plain loop over padded batches.",
    ),
    "bench_gate": Benchmark(
        "The data gate",
        "The two stages between raw rows and training, which check and format the data: on all rows of hh-rlhf's "
        "harmless-base that were given, and on many synthetic rows of the same shape.",
        [
            Goal("hh-rlhf, validate_pairs", "wall_seconds", "<=", 60),
            Goal("160,000 synthetic rows, validate_pairs", "wall_seconds", "<=", 180),
            Goal("160,000 synthetic rows, validate_pairs", "peak_rss_gb", "<=", 4),
        ],
    ),
    "bench_pipeline": Benchmark(
        "The pipeline itself",
        "`dvc repro` with nothing to do, against the same with as many stages that do nothing. Below it, each stage of the "
        "tiny profile by itself, with the part of its time that goes into imports.",
        [Goal("done pipeline / empty DAG", "wall_seconds", "<=", 1.3)],
    ),
}

INTRO = """# Benchmarks

Generated from the CSV files in `benchmarks` by `make docs`; do not edit. `benchmarks/README.md` explains how to run each.

Every run is a process of its own, and the contenders take turns, round after round, so a machine that slows down slows all of
them. A value is the median of n rounds, with the lowest and the highest in brackets. A ratio (ours / theirs) compares two runs
of one round. Memory is the highest resident set, in 10^9 bytes.
"""


def page(folder: Path = RESULTS) -> str:
    """The whole page as Markdown: the benchmarks with a CSV in `folder`. Raises `DataError` as `goals` does."""
    results = {name: pd.read_csv(path) for name in BENCHMARKS if (path := folder / f"{name}.csv").exists()}
    return "\n".join([INTRO, setups(results), *(section(name, summary) for name, summary in results.items())])


def setups(results: Mapping[str, pd.DataFrame]) -> str:
    """One line per hardware and versions: the benchmarks that were measured with them."""
    titles: dict[tuple[str, str], list[str]] = {}
    for name, summary in results.items():
        for setup in sorted(set(zip(summary["hardware"], summary["versions"], strict=True))):
            titles.setdefault(setup, []).append(BENCHMARKS[name].title)
    return "".join(f"- {', '.join(each)}: {on}; {of}.\n" for (on, of), each in titles.items())


def section(name: str, summary: pd.DataFrame) -> str:
    """A benchmark: what it compares, and the table of its results."""
    benchmark = BENCHMARKS[name]
    return (
        f"## {benchmark.title}\n\n{textwrap.fill(benchmark.text, 120)}\n\n{markdown(summary, goals(name, summary))}\n"
    )


def goals(name: str, summary: pd.DataFrame) -> dict[str, str]:
    """For every row of the table with goals, the goals and whether they are met.

    Raises `DataError` if a contender or comparison with a goal was not measured.
    """
    medians = summary.set_index(["what", "metric"])["median"]
    lines: dict[str, list[str]] = {}
    for goal in BENCHMARKS[name].goals:
        if (goal.what, goal.metric) not in medians:
            raise DataError(f"benchmarks/{name}.csv: no row '{goal.what}', {goal.metric}, which has a goal in page.py")
        verdict = "met" if SIGNS[goal.sign](medians[goal.what, goal.metric], goal.bound) else "missed"
        metric = goal.metric.replace("_", " ")
        lines.setdefault(goal.what, []).append(f"{metric} {goal.sign} {rounded(goal.bound)}: {verdict}")
    return {what: "; ".join(each) for what, each in lines.items()}


if __name__ == "__main__":
    end_in_one_line(lambda: print(page(), end=""))
