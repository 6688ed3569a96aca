"""docs/benchmarks.md, made from the results in this folder: `make docs` writes it, a test holds it against them.

python -m benchmarks.page > docs/benchmarks.md
"""

import operator
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from benchmarks.harness import end_in_one_line, markdown, rounded
from prefdag.runtime.errors import DataError

RESULTS = Path(__file__).parent
GPU_RUNS = ("small lora", "small full", "1.7B lora", "1.7B full")
SIGNS = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True)
class Goal:
    """What the median of a `metric` of a contender or comparison is to be."""

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
        "The same pairs, model, LoRA and batches, trained by this project and by TRL's DPOTrainer: as it comes, with the "
        "reference's log-probabilities computed beforehand, as here, and at its fastest, without gradient checkpointing too. "
        "`ours sparing` takes a pair a forward pass instead of the four of a step: the same losses, less memory. "
        "`flops share` is the useful arithmetic of a step against the rate of matrix products that lasts here, measured before "
        "and behind it; `loss difference` the largest one of the first 8 steps.",
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
        "In bfloat16, LoRA and all weights, of a small model and of one of 1.7 billion weights, by this project and by TRL's "
        "DPOTrainer as it comes. `flops share` is the model FLOPs utilisation (MFU): the useful arithmetic of a step against "
        "what this GPU does in matrix products, measured in the same run.",
        [
            *(Goal(f"ours, {run} / trl, {run}", "tokens_per_second", ">=", 3) for run in GPU_RUNS),
            *(Goal(f"ours, {run}", "flops_share", ">=", 0.4) for run in GPU_RUNS if run.startswith("1.7B")),
        ],
    ),
    "bench_sweep": Benchmark(
        "Five betas",
        "From the reference model to five policies, end to end: a ratio is how often ours fits into the other's time.",
        [Goal("trl / ours", "wall_seconds", ">=", 12)],
    ),
    "bench_image": Benchmark(
        "Training a classifier",
        "A DPO step of ResNet-50 here, with the reference looked up or beside the policy, and in the project that this one "
        "grew from.",
        [Goal("ours-cached / seed", "images_per_second", ">=", 2.5)],
    ),
    "bench_eval": Benchmark(
        "Scoring responses",
        "Log-probabilities of the responses of an evaluation, here and by a plain loop over padded batches of transformers.",
    ),
    "bench_gate": Benchmark(
        "The data gate",
        "The two stages between raw rows and training: reading and judging all rows of hh-rlhf's harmless-base that are "
        "given, formatting them; and the same of many synthetic rows of their shape.",
        [
            Goal("hh-rlhf, validate_pairs", "wall_seconds", "<=", 60),
            Goal("160,000 synthetic rows, validate_pairs", "wall_seconds", "<=", 180),
            Goal("160,000 synthetic rows, validate_pairs", "peak_rss_gb", "<=", 4),
        ],
    ),
    "bench_pipeline": Benchmark(
        "The pipeline itself",
        "A `dvc repro` that has nothing to do, against the same on as many stages that do nothing. Below it the tiny profile, "
        "each stage by itself, and how much of its time its imports take.",
        [Goal("done pipeline / empty DAG", "wall_seconds", "<=", 1.3)],
    ),
}

INTRO = """# Benchmarks

Generated from the CSV files in `benchmarks` by `make docs`; do not edit. `benchmarks/README.md` says how to run each.

Every run is a process of its own, and the contenders take turns, round after round: a machine that slows down slows all
of them. A figure is the median of n rounds, with the lowest and the highest; a ratio (ours / theirs) is that of two runs of
one round. Memory is the highest resident set, in 10^9 bytes.
"""


def page(folder: Path = RESULTS) -> str:
    """The whole page as Markdown, of the benchmarks that have a CSV in `folder`. Raises `DataError` as `goals` does."""
    found = {name: pd.read_csv(path) for name in BENCHMARKS if (path := folder / f"{name}.csv").exists()}
    return "\n".join([INTRO, setups(found), *(section(name, summary) for name, summary in found.items())])


def setups(found: Mapping[str, pd.DataFrame]) -> str:
    """What was measured on which hardware with which versions, a line each."""
    titles: dict[tuple[str, str], list[str]] = {}
    for name, summary in found.items():
        for setup in sorted(set(zip(summary["hardware"], summary["versions"], strict=True))):
            titles.setdefault(setup, []).append(BENCHMARKS[name].title)
    return "".join(f"- {', '.join(each)}: {on}; {of}.\n" for (on, of), each in titles.items())


def section(name: str, summary: pd.DataFrame) -> str:
    """A benchmark: what it compares, and the table of what came out."""
    benchmark = BENCHMARKS[name]
    return (
        f"## {benchmark.title}\n\n{textwrap.fill(benchmark.text, 120)}\n\n{markdown(summary, goals(name, summary))}\n"
    )


def goals(name: str, summary: pd.DataFrame) -> dict[str, str]:
    """The goals of every row of the table that has some, and whether it meets them.

    Raises `DataError` where what is to be compared was not measured.
    """
    medians = summary.set_index(["what", "metric"])["median"]
    said: dict[str, list[str]] = {}
    for goal in BENCHMARKS[name].goals:
        if (goal.what, goal.metric) not in medians:
            raise DataError(f"benchmarks/{name}.csv: no row '{goal.what}', {goal.metric}, which has a goal in page.py")
        verdict = "met" if SIGNS[goal.sign](medians[goal.what, goal.metric], goal.bound) else "missed"
        metric = goal.metric.replace("_", " ")
        said.setdefault(goal.what, []).append(f"{metric} {goal.sign} {rounded(goal.bound)}: {verdict}")
    return {what: "; ".join(each) for what, each in said.items()}


if __name__ == "__main__":
    end_in_one_line(lambda: print(page(), end=""))
