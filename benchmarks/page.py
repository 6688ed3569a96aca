"""Generates docs/benchmarks.md from the results in this folder. `make docs` writes it; a test checks that it is current.

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
from prefdag.lifecycle.errors import DataError

RESULTS = Path(__file__).parent
SIDES: Sequence[tuple[Literal[">=", "<="], float]] = ((">=", 0.85), ("<=", 1.15))
SIGNS = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True)
class Goal:
    """A bound on the median of a contender's or comparison's `metric`."""

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
    partial: bool = False  # some results may be missing


BENCHMARKS: Mapping[str, Benchmark] = {
    "bench_dpo": Benchmark(
        "Training a language model",
        "The same pairs, model, LoRA and batches, trained by this project and by TRL's DPOTrainer. `trl` uses its defaults; "
        "`trl precomputed` computes the reference's log-probabilities beforehand, as this project does; `trl fastest` also "
        "turns gradient checkpointing off. `ours sparing` takes one pair per forward pass instead of the four of a step: the "
        "same losses with less memory. `flops share` is the useful arithmetic of a step, relative to the sustained rate of "
        "matrix products on this machine, measured before and after training. `loss difference` is the largest difference "
        "in the first 8 steps.",
        [
            Goal("ours / trl", "pairs_per_second", ">=", 12),
            Goal("ours / trl", "peak_rss_gb", "<=", 0.3),
            Goal("ours / trl precomputed", "pairs_per_second", ">=", 7),
            Goal("ours", "flops_share", ">=", 0.65),
            Goal("ours - trl", "loss_difference", "<=", 1e-5),
        ],
    ),
    "bench_sweep": Benchmark(
        "Five betas",
        "From the reference model to five policies, end to end, with 32 pairs. TRL, too, computes the reference's "
        "log-probabilities beforehand. The ratio is TRL's value divided by ours.",
        [Goal("trl / ours", "wall_seconds", ">=", 14)],
    ),
    "bench_image": Benchmark(
        "Training a classifier",
        "A DPO step of ResNet-50 in this project, with cached or live reference log-probabilities, and in the project that "
        "this one grew from.",
        [Goal("ours-cached / seed", "images_per_second", ">=", 4)],
    ),
    "bench_eval": Benchmark(
        "Scoring responses",
        "Log-probabilities of responses, as in an evaluation, by this project and by a plain transformers loop over padded "
        "batches.",
        [Goal("ours / transformers", "pairs_per_second", ">=", 6)],
    ),
    "bench_generate": Benchmark(
        "Generating answers",
        "Answers to held-out prompts, by this project and by transformers' `generate` with the same batches, temperature and "
        "top-p: one, four or eight sampled answers per prompt. `both` is what `answer_text` does, a greedy and a sampled "
        "answer, which takes `generate` two calls. CPU time on one thread; a ratio is of tokens per CPU second. Matrix "
        "products bound it, about 70% of our time in a profile: timed by themselves on this machine, without the prompts "
        "(best of three), those of 8, 16, 32 and 64 rows allow 97, 161, 255 and 341 tokens per CPU second. Four times the "
        "pace of `generate` would be at or above that, except with eight samples. A batch of few rows takes nearly as long as "
        "one of many, which is what several samples per prompt gain from.",
        [
            Goal(f"ours, {kind} / transformers, {kind}", "tokens_per_cpu_second", ">=", 4)
            for kind in ("1", "4", "8", "both")
        ],
        partial=True,
    ),
    "bench_gate": Benchmark(
        "The data gate",
        "The two stages between raw rows and training: `validate_pairs` reads and checks all rows of hh-rlhf's harmless-base "
        "file, `format_pairs` formats them. Then the same for many synthetic rows of the same shape.",
        [
            Goal(f"160,000 synthetic rows, {stage}", metric, "<=", bound)
            for stage in ("validate_pairs", "format_pairs")
            for metric, bound in (("wall_seconds", 60), ("peak_rss_gb", 1))
        ],
    ),
    "bench_rows": Benchmark(
        "Token ids in memory",
        "160,000 synthetic pairs, prompts of 130 tokens and responses of 90, as `dpo_text` reads and keeps them and packs each "
        "once, four at a time, and as `ref_logps` reads and packs them in parts. `before` is the last revision with Python "
        "lists. `kept gb` is anonymous memory, `mapped gb` that of files, which the system takes back when memory runs short; "
        "both are what the end of a run has beyond its imports.",
    ),
    "bench_estimate": Benchmark(
        "The estimate of memory",
        "What `prefdag estimate` says a DPO training takes, against the peak of the resident memory beyond that of the "
        "imports (`base mb`), for models with random weights of four sizes in float32.",
        [
            Goal(f"{size}, {adapter}{suffix}", "estimated_per_measured", sign, bound)
            for size in ("small", "medium", "large", "wide")
            for adapter in ("lora", "full")
            for suffix in ("", ", checkpointing")
            for sign, bound in SIDES
        ],
    ),
    "bench_journey": Benchmark(
        "The journey",
        "A `dvc repro` in a fresh clone (`whole run`), of the default and of the tiny profile, and one after a change of beta: "
        "both DPO trainings and all that follows them. Its stages are forks of a process that has imported their libraries, or "
        "each imports them itself (`PREFDAG_WARM=off`). `work seconds` are those in which a stage trains, scores or samples; "
        "`share outside` is that of all other ones.",
        [
            Goal("default, whole run", "wall_seconds", "<=", 300),
            Goal("default, another beta", "share_outside", "<=", 0.25),
            Goal("tiny, whole run", "wall_seconds", "<=", 60),
        ],
        partial=True,
    ),
    "bench_pipeline": Benchmark(
        "The pipeline itself",
        "A `dvc repro` with nothing to do, against one in a DAG with as many empty stages. Below it, each stage of the tiny "
        "profile by itself, and how much of its time its imports take.",
        [Goal("done pipeline / empty DAG", "wall_seconds", "<=", 1.4)],
    ),
}

INTRO = """# Benchmarks

Generated from the CSV files in `benchmarks` by `make docs`; do not edit. `benchmarks/README.md` explains how to run each.

Every run is a separate process, and the contenders take turns, round after round: a machine that slows down slows all of
them. A figure is the median of n rounds, with the lowest and highest in parentheses. A ratio (ours / theirs) compares two
runs of the same round. Memory is the peak resident set size in 10^9 bytes.

[gpu.md](gpu.md) has trainings on GPUs, [growth.md](growth.md) how time and memory grow with the size of the data and the
model.
"""


def page(folder: Path = RESULTS) -> str:
    """The page as Markdown, for the benchmarks that have a CSV in `folder`. Raises `DataError` as `goals` does."""
    summaries = {name: pd.read_csv(path) for name in BENCHMARKS if (path := folder / f"{name}.csv").exists()}
    return "\n".join([INTRO, setups(summaries), *(section(name, summary) for name, summary in summaries.items())])


def setups(summaries: Mapping[str, pd.DataFrame]) -> str:
    """One line per combination of hardware and versions, with the benchmarks measured on it."""
    titles: dict[tuple[str, str], list[str]] = {}
    for name, summary in summaries.items():
        for setup in sorted(set(zip(summary["hardware"], summary["versions"], strict=True))):
            titles.setdefault(setup, []).append(BENCHMARKS[name].title)
    return "".join(
        f"- {', '.join(measured)}: {hardware}; {versions}.\n" for (hardware, versions), measured in titles.items()
    )


def section(name: str, summary: pd.DataFrame) -> str:
    """The section of a benchmark: what it compares, and the table of results."""
    benchmark = BENCHMARKS[name]
    return (
        f"## {benchmark.title}\n\n{textwrap.fill(benchmark.text, 120)}\n\n{markdown(summary, goals(name, summary))}\n"
    )


def goals(name: str, summary: pd.DataFrame) -> dict[str, str]:
    """By row of the table, its goals and whether they are met. Raises `DataError` if a goal's metric was not measured."""
    medians = summary.set_index(["what", "metric"])["median"]
    verdicts: dict[str, list[str]] = {}
    for goal in BENCHMARKS[name].goals:
        if BENCHMARKS[name].partial and (goal.what, goal.metric) not in medians:
            continue
        if (goal.what, goal.metric) not in medians:
            raise DataError(f"benchmarks/{name}.csv: no row '{goal.what}', {goal.metric}, which has a goal in page.py")
        verdict = "met" if SIGNS[goal.sign](medians[goal.what, goal.metric], goal.bound) else "missed"
        metric = goal.metric.replace("_", " ")
        verdicts.setdefault(goal.what, []).append(f"{metric} {goal.sign} {rounded(goal.bound)}: {verdict}")
    return {what: "; ".join(each) for what, each in verdicts.items()}


if __name__ == "__main__":
    end_in_one_line(lambda: print(page(), end=""))
