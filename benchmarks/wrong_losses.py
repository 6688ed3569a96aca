"""Two wrong losses beside the right ones: what each does to a language model.

    python benchmarks/wrong_losses.py run FOLDER      one row of benchmarks/wrong_losses.csv per arm; continues where it stopped
    python benchmarks/wrong_losses.py table           the results as the tables of docs/wrong_losses.md

FOLDER is a pipeline run: its data/pairs, data/ref_logps and models/reference are read. Every arm starts at the reference and
trains in steps of `BATCH` pairs, with all other settings from params.yaml's dpo_text. Within a study and a seed, the arms
differ only in the loss. All metrics are measured on the test split.

The wrong losses exist only here; docs/wrong_losses.md explains what is wrong with them.
"""

import itertools
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks.fitting import fitted, unwatched
from benchmarks.harness import append, run_or_table
from prefdag.dpo.losses import sigmoid
from prefdag.dpo.pair_batch import PairBatch
from prefdag.dpo.preference import kl
from prefdag.stats.intervals import mean, proportion
from prefdag.train.outputs import map_tensors

RESULTS = Path(__file__).with_name("wrong_losses.csv")
SEEDS = (0,)  # for LoRA's initial weights and the order of the data
RATE = 1e-3  # the default
BATCH = 4  # half the default, for twice the steps
BETA = 0.1
P = 0.7  # soft label: the probability that the chosen response is preferred
TARGET = math.log(P / (1 - P)) / BETA  # 8.47 nats: the minimum of -p log s(b m) - (1 - p) log s(-b m)


# The losses, each of shape (pairs,)


def probabilistic(batch: PairBatch, p: float) -> Tensor:
    """-p log s(b h) - (1 - p) log s(-b h), h = log-ratio of y_w - log-ratio of y_l. DPO if p = 1; minimum at logit(p) / b."""
    logratios = (response.logps - response.ref_logps for response in (batch.chosen, batch.rejected))
    return sigmoid(*logratios, BETA, label_smoothing=1 - p)


def without_reference(batch: PairBatch, p: float) -> Tensor:
    """WRONG. Uses log-probabilities instead of log-ratios: the optimum is log pi(y_w) - log pi(y_l) = logit(p) / b."""
    return sigmoid(batch.chosen.logps, batch.rejected.logps, BETA, label_smoothing=1 - p)


def cross_entropy_difference(batch: PairBatch) -> Tensor:
    """WRONG. CE(y_w) - CE(y_l), each a mean over tokens: it has no reference and no lower bound."""
    return batch.rejected.logps / batch.rejected.tokens - batch.chosen.logps / batch.chosen.tokens


ARMS: Mapping[str, Callable[[PairBatch], Tensor]] = {
    "DPO": lambda batch: probabilistic(batch, 1.0),
    "difference of cross-entropies": cross_entropy_difference,
    "probabilistic DPO, p = 0.7": lambda batch: probabilistic(batch, P),
    "without the reference, p = 0.7": lambda batch: without_reference(batch, P),
    "without the reference, p = 1": lambda batch: without_reference(batch, 1.0),
}


@dataclass(frozen=True)
class Study:
    """A study: its arms train `epochs` times on the first `pairs` training pairs; None: on all of them."""

    pairs: int | None
    epochs: int
    arms: Sequence[str]
    shown: Mapping[str, tuple[str, str]]  # its table: a column of `RESULTS` and a format by heading


MEASURED = {
    "chosen": ("chosen_per_token", "+.2f"),
    "rejected": ("rejected_per_token", "+.2f"),
    "perplexity": ("perplexity", ".3g"),
    "KL": ("kl", ".3g"),
}
STUDIES = {
    "one epoch": Study(
        None,
        1,
        list(ARMS),
        {
            "h": ("margin", "+.1f"),
            "h, pushed back": ("margin_pushed_back", "+.1f"),
            "h, others": ("margin_others", "+.1f"),
            "correlation": ("correlation", "+.2f"),
            **MEASURED,
        },
    ),
    # What a loss does once its pairs are learnt: the same four pairs in every step.
    "four pairs": Study(
        BATCH,
        20,
        ["DPO", "difference of cross-entropies"],
        {
            "first loss": ("first_loss", ".3f"),
            "last loss": ("last_loss", ".3f"),
            "h, learnt": ("learnt_margin", "+.1f"),
            "h": ("margin", "+.1f"),
            **MEASURED,
        },
    ),
}


# The measurement


def run(folder: Path) -> None:
    """Run everything that is not in `RESULTS` yet."""
    from prefdag.check_params import load_params
    from prefdag.text import model as lm
    from prefdag.text import trainable
    from prefdag.text.dpo_batch import pair_batch
    from prefdag.text.scoring.logps import Pair, PairLogps, all_pair_logps, pair_logps
    from prefdag.text.scoring.rows import pair_rows, read_ref_logps, read_split
    from prefdag.train.task import Task, Tasks

    params = load_params(folder / "params.yaml")
    pairs: dict[str, Sequence[Pair]] = {}
    references: dict[str, PairLogps] = {}
    data, reference = folder / "data/pairs", folder / "models/reference"
    for split in ("train", "val"):
        rows = read_split(data, split)
        pairs[split] = pair_rows(rows)
        references[split] = read_ref_logps(folder / "data/ref_logps", split, rows.ids, data, reference)
    pairs["test"] = pair_rows(read_split(data, "test"))
    references["test"] = all_pair_logps(lm.load(reference), pairs["test"], 1024, "test")

    def task(split: str, count: int, loss: Callable[[PairBatch], Tensor]) -> Task:
        def forward(model: nn.Module, rows: Sequence[int], epoch: int | None) -> PairBatch:
            chunk = [pairs[split][i] for i in rows]
            of_rows = map_tensors(lambda values: values[list(rows)], references[split])
            return pair_batch(chunk, pair_logps(model, chunk), of_rows)

        def loss_and_metrics(batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
            chosen, rejected = batch.chosen, batch.rejected
            h = chosen.logps - chosen.ref_logps - rejected.logps + rejected.ref_logps
            return loss(batch), {"margin": h.detach(), "kl": kl(batch).detach()}

        return Task(forward, loss_and_metrics, [1.0] * count, [f"{split} {i}" for i in range(count)])

    if not have("", 0, "reference"):
        same = pair_batch(pairs["test"], references["test"], references["test"])
        shares = {
            f"{split}_{name}": value
            for split in ("train", "test")
            for name, value in wrong_way(references[split].chosen.logps - references[split].rejected.logps).items()
        }
        row = {"study": "", "seed": 0, "arm": "reference", "learning_rate": 0.0, **measure(same), **shares}
        append(RESULTS, row, COLUMNS)
    for (name, study), seed in itertools.product(STUDIES.items(), SEEDS):
        count = study.pairs or len(pairs["train"])
        steps = study.epochs * math.ceil(count / BATCH)
        sizes = {"epochs": study.epochs, "batch_size": BATCH, "micro_batch_size": BATCH}
        training = unwatched(params.dpo_text.training, **sizes, learning_rate=RATE)
        for arm in study.arms:
            if have(name, seed, arm):
                continue
            start = time.monotonic()
            reference = lm.load(folder / "models/reference")
            policy = trainable.add_adapter(reference, params.dpo_text.adapter, seed, "dpo_text.adapter")
            # `fit` needs a validation task; one row is enough, since the test split is measured afterwards.
            tasks = Tasks(task("train", count, ARMS[arm]), task("val", 1, ARMS[arm]))
            history = fitted(policy, tasks, training, seed).train
            logps = all_pair_logps(policy, pairs["test"], 1024, arm)
            batch = pair_batch(pairs["test"], logps, references["test"])
            # Means over the last steps: the final loss, and the margin of pairs that are already learnt.
            last = {key: sum(row[key] for row in history[-8:]) / 8 for key in ("loss", "margin")}
            append(
                RESULTS,
                {
                    "study": name,
                    "seed": seed,
                    "arm": arm,
                    "learning_rate": RATE,
                    "steps": steps,
                    "train_n": count,
                    "first_loss": history[0]["loss"],
                    "last_loss": last["loss"],
                    **({"learnt_margin": last["margin"]} if study.epochs > 1 else {}),
                    **measure(batch),
                    "seconds": round(time.monotonic() - start),
                    "hardware": hardware(),
                },
                COLUMNS,
            )


def measure(batch: PairBatch) -> dict[str, float]:
    """Metrics of the policy against the reference on held-out pairs, in nats.

    `pushed_back` are the pairs whose responses the reference itself separates by more than `TARGET`. For them the loss
    without the reference, p = 0.7, asks for a margin h below zero.
    """
    batch = map_tensors(Tensor.double, batch)
    chosen, rejected = (response.logps - response.ref_logps for response in (batch.chosen, batch.rejected))
    h, given = chosen - rejected, batch.chosen.ref_logps - batch.rejected.ref_logps
    low, high = mean(h.tolist())
    return {
        "test_n": len(h),
        "accuracy": float((h > 0).double().mean()),
        "margin": float(h.mean()),
        "margin_low": low,
        "margin_high": high,
        "margin_pushed_back": float(h[given > TARGET].mean()),
        "margin_others": float(h[given <= TARGET].mean()),
        "correlation": float(torch.corrcoef(torch.stack([given, h]))[0, 1]) if bool(h.any()) else 0.0,
        "chosen_per_token": float(chosen.sum() / batch.chosen.tokens.sum()),
        "rejected_per_token": float(rejected.sum() / batch.rejected.tokens.sum()),
        "perplexity": math.exp(-float(batch.chosen.logps.sum() / batch.chosen.tokens.sum())),
        "kl": float(kl(batch).mean()),
    }


def wrong_way(given: Tensor) -> dict[str, float]:
    """What the loss without the reference, p = 0.7, asks for on pairs whose margins under the reference are `given`, (pairs,).

    `pushed_back`: the share of pairs whose chosen response it makes less likely relative to the rejected one.
    `beyond`: the share that the reference separates by more than `TARGET`, in either direction.
    `optimum`: mean and standard deviation of its optimal h. For the right loss they are logit(p) / b and 0.
    """
    optimum = TARGET - given.double()
    return {
        "pushed_back": float((given > TARGET).double().mean()),
        "beyond": float((given.abs() > TARGET).double().mean()),
        "optimum_mean": float(optimum.mean()),
        "optimum_deviation": float(optimum.std()),
    }


def hardware() -> str:
    """The processor, its cores and the threads in use."""
    match = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{os.cpu_count()} cores of an {match.group(1) if match else 'unknown processor'}; {torch.get_num_threads()} thread"


# The results

COLUMNS = ["study", "seed", "arm", "learning_rate", "steps", "train_n", "test_n"]
COLUMNS += ["first_loss", "last_loss", "learnt_margin"]
COLUMNS += ["accuracy", "margin", "margin_low", "margin_high", "margin_pushed_back", "margin_others", "correlation"]
COLUMNS += ["chosen_per_token", "rejected_per_token", "perplexity", "kl"]
COLUMNS += [
    f"{split}_{name}"
    for split in ("train", "test")
    for name in ("pushed_back", "beyond", "optimum_mean", "optimum_deviation")
]
COLUMNS += ["seconds", "hardware"]


def results() -> pd.DataFrame:
    """All results so far."""
    return pd.read_csv(RESULTS).fillna({"study": ""}) if RESULTS.exists() else pd.DataFrame(columns=COLUMNS)


def have(study: str, seed: int, arm: str) -> bool:
    """Whether this run is in the results."""
    rows = results()
    return bool(((rows["study"] == study) & (rows["seed"] == seed) & (rows["arm"] == arm)).any())


def table(study: str) -> str:
    """The results of a study as a table: means over seeds, and the 95% interval of the accuracy over pairs."""
    shown = STUDIES[study].shown
    headings = ["loss", "ranked right", *shown]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    every = results()
    for arm, rows in every[every["study"] == study].groupby("arm", sort=False):
        row = rows.mean(numeric_only=True)
        low, high = proportion(round(row["accuracy"] * row["test_n"]), round(row["test_n"]))
        cells = [str(arm), f"{row['accuracy']:.0%} ({low:.0%} to {high:.0%})"]
        cells += [format(row[column], form) for column, form in shown.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def tables() -> str:
    """The tables of all studies."""
    return "\n\n".join(f"{name}\n\n{table(name)}" for name in STUDIES)


if __name__ == "__main__":
    run_or_table(__doc__ or "", run, tables, "folder")
