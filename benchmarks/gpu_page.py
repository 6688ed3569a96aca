"""Generates docs/gpu.md from benchmarks/bench_gpu.csv. `make docs` writes it.

python -m benchmarks.gpu_page [--price 3.00] > docs/gpu.md
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.gpu_cells import SIDES, Cell
from benchmarks.harness import end_in_one_line, markdown, rounded, spread, summarise

RESULTS = Path(__file__).with_name("bench_gpu.csv")
CHECKS = Path(__file__).with_name("gpu_checks.csv")
FIRST = Path(__file__).with_name("bench_gpu_first.csv")
# Products of dense bfloat16 matrices with float32 sums, TFLOP/s, as in NVIDIA's data sheets; by a part of the card's name.
PEAKS = {"H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312}
GOALS = {"trl": 3.0, "trl best": 1.6}  # ours / theirs, pairs per second
MFU_GOAL = 0.45  # of 8B with LoRA, rows of 4,096 tokens
ULTRAFEEDBACK = 60_000  # pairs
PRICE = 3.0  # dollars an hour of a card: an assumption, not an offer
NOT_MEASURED = "Not measured on any GPU yet: `make bench-gpu` does it."
INTRO = """# Training on a GPU

Generated from `benchmarks/bench_gpu.csv` by `make docs`; do not edit. `benchmarks/README.md` explains how to run it.

DPO in bfloat16 of models with random weights, by this project and by TRL's DPOTrainer: as it comes (`trl`: the reference is
computed during training, gradient checkpointing, float32 weights), and at its best (`trl best`: the reference beforehand,
Liger's layers, FlashAttention if it is installed and torch's own kernel otherwise, frozen weights in bfloat16). TRL 1.16 has no
padding-free DPO: it warns and pads. Here all rows of a cell have the same length, so it pads nothing. A row is a prompt and a
response; share is the prompt's part of it. LoRA has rank 8, on the query and value projections.

Figures are medians of n turns, with the lowest and highest; a ratio is of two trainings of one turn. They are of training:
the reference's pass beforehand is not in them, but it is in the cost below. `tokens/s` counts prompt and chosen, and prompt and
rejected. `MFU` is the arithmetic that a step needs, with each prompt once, over the card's peak by its data sheet, and `share`
the same over the rate of 8192 x 8192 matrix products in the same process. `GB` is the most memory that was allocated.
"""


def page(results: Path = RESULTS, checks: Path = CHECKS, first: Path = FIRST, price: float = PRICE) -> str:
    """The page as Markdown."""
    rows = pd.read_csv(results, keep_default_na=False) if results.exists() else None
    parts = [INTRO, *(machines(rows) if rows is not None else [f"{NOT_MEASURED}\n"])]
    if checks.exists():
        parts.append(checked(pd.read_csv(checks)))
    parts.append(cost(rows, price))
    if first.exists():
        parts.append(earlier(pd.read_csv(first)))
    return "\n".join(parts)


def machines(rows: pd.DataFrame) -> Iterator[str]:
    """A section for each machine."""
    for (hardware, versions), part in rows.groupby(["hardware", "versions"], sort=False):
        lines = ["| model | trained | tokens | share | side | pairs/s | tokens/s | MFU | share | GB | ours / it | n |"]
        lines.append("|---" * 12 + "|")
        for key, cell in part.groupby(list(Cell._fields), sort=False):
            lines += cell_lines(Cell(*key), cell, str(hardware))
        yield f"## {hardware}\n\n{versions}.\n\n" + "\n".join(lines) + f"\n\n{remarks(part)}"


def cell_lines(cell: Cell, rows: pd.DataFrame, hardware: str) -> Iterator[str]:
    """A line for each side of a cell; what was not measured has the reason in the place of figures."""
    summary = medians(rows)
    for side in SIDES:
        mine = rows[rows["side"] == side]
        if mine.empty:
            continue
        names = [*map(str, cell), side + (", checkpointing" if side != "trl" and mine["checkpointing"].any() else "")]
        failed = mine["note"][mine["note"] != ""]
        if (side, "pairs_per_second") not in summary.index:
            yield f"| {' | '.join([*names, failed.iloc[0], '', '', '', '', '', str(len(mine))])} |"
            continue
        values = {name: shown(summary, side, name) for name in ("pairs_per_second", "tokens_per_second", "flops_share")}
        ratio = shown(summary, f"ours / {side}", "pairs_per_second")
        if ratio and side in GOALS:
            met = summary.loc[(f"ours / {side}", "pairs_per_second"), "median"] >= GOALS[side]
            ratio += f"; >= {GOALS[side]:g}: {'met' if met else 'missed'}"
        n = summary.loc[(side, "pairs_per_second"), "n"]
        memory = shown(summary, side, "peak_gpu_gb")
        speeds = [values["pairs_per_second"], values["tokens_per_second"], mfu(cell, mine, side, hardware)]
        yield f"| {' | '.join([*names, *speeds, values['flops_share'], memory, ratio, f'{n:g}'])} |"


def medians(rows: pd.DataFrame) -> pd.DataFrame:
    """Median and spread of each side and metric, and of ours over the others, by turns."""
    metrics = ["pairs_per_second", "tokens_per_second", "flops_share", "peak_gpu_gb", "reference_pairs_per_second"]
    long = rows.melt(["round", "side"], metrics, "metric").rename(columns={"side": "contender"})
    long["value"] = pd.to_numeric(long["value"])
    present = long.dropna(subset="value")
    baselines = [side for side in GOALS if side in set(present["contender"])]
    return summarise(present, *baselines).set_index(["what", "metric"]).sort_index()


def shown(summary: pd.DataFrame, what: str, metric: str) -> str:
    """A median with its spread, or nothing."""
    if (what, metric) not in summary.index:
        return ""
    row = summary.loc[(what, metric)]
    return spread(row["min"], row["median"], row["max"])


def mfu(cell: Cell, rows: pd.DataFrame, side: str, hardware: str) -> str:
    """Useful arithmetic over the peak of the card, with the goal; empty if the card's peak is not known here."""
    peak = next((tera for name, tera in PEAKS.items() if name in hardware), None)
    rates = pd.to_numeric(rows["useful_tflops"]).dropna()
    if peak is None or rates.empty:
        return ""
    share = rates.median() / peak
    goal = side == "ours" and (cell.shape, cell.adapter, cell.tokens) == ("8B", "lora", 4_096)
    return rounded(share) + (f"; >= {MFU_GOAL:g}: {'met' if share >= MFU_GOAL else 'missed'}" if goal else "")


def remarks(rows: pd.DataFrame) -> str:
    """What was compiled late, where packed rows did not work, and how far the sides' losses are apart."""
    ours = rows[rows["side"] == "ours"]
    late = pd.to_numeric(ours["compiled_later"]).max()
    lines = (
        []
        if pd.isna(late)
        else [f"Most that torch compiled after the first ten steps of a training of ours: {late:g}."]
    )
    if (pd.to_numeric(ours["packed"]) == 0).any():
        lines.append("In some trainings of ours, packed rows failed their trial: one padded row per response was used.")
    eighth = rows.assign(loss=pd.to_numeric(rows["loss_8"])).groupby([*Cell._fields, "side"])["loss"].median()
    apart = eighth.groupby(list(Cell._fields)).agg(lambda each: each.max() - each.min()).max()
    if not pd.isna(apart):
        lines.append(f"In step 8, the losses of a cell's sides are at most {rounded(apart)} apart.")
    return " ".join(lines) + "\n" if lines else ""


def checked(rows: pd.DataFrame) -> str:
    """The checks that no speed shows."""
    text = (
        "## Checks\n\nFlexAttention's compiled mask and the pieces, against the pieces in float64: largest difference as a "
        "share of the largest entry. What torch compiles after the first ten steps, where every pair has other lengths.\n\n"
    )
    lines = ["| check | what | value | card |", "|---|---|---|---|"]
    for row in rows.itertuples():
        value = "" if pd.isna(row.value) else f"{float(row.value):.2g}"
        lines.append(f"| {row.check} | {row.metric} | {value} | {card(str(row.hardware))} |")
    return text + "\n".join(lines) + "\n"


def cost(rows: pd.DataFrame | None, price: float) -> str:
    """Hours and dollars of an epoch of as many pairs as UltraFeedback has, at the measured rates of an 8B model."""
    title = "## Cost on paper\n\n"
    measured = None if rows is None else rows[(rows["shape"] == "8B") & (rows["note"] == "")]
    if measured is None or measured.empty:
        return f"{title}No rates of an 8B model have been measured, so there are no hours and dollars to give.\n"
    lines = ["| card | trained | tokens | share | side | hours | dollars |", "|---|---|---|---|---|---|---|"]
    for key, part in measured.groupby(["hardware", "adapter", "tokens", "share", "side"], sort=False):
        hardware, *names = map(str, key)
        seconds = sum(
            ULTRAFEEDBACK / rate
            for name in ("pairs_per_second", "reference_pairs_per_second")
            if not pd.isna(rate := pd.to_numeric(part[name]).median())
        )
        hours = seconds / 3600
        lines.append(f"| {' | '.join([card(hardware), *names, rounded(hours), rounded(hours * price)])} |")
    text = (
        f"One epoch of {ULTRAFEEDBACK:,} pairs, about as many as UltraFeedback's binarized train split has, of rows as long as "
        f"given, on one card at ${price:.2f} an hour (an assumption: `--price`). The reference's pass is included once; "
        "loading, validation and evaluation are not.\n\n"
    )
    return title + text + "\n".join(lines) + "\n"


def card(hardware: str) -> str:
    """The GPU in a description of hardware, or all of it."""
    return next((part for part in hardware.split(", ") if "NVIDIA" in part), hardware)


def earlier(summary: pd.DataFrame) -> str:
    """The first run on a GPU, of which the rest was never measured."""
    text = (
        "## The first run\n\nAn earlier benchmark, when a GPU was there for half an hour: one training of each side, LoRA of a "
        "1.7B model on 224 pairs of hh-rlhf in batches of 32. The trial of packed rows was too strict for random weights, so "
        "ours computed one padded row per response. The trial has been mended since, and this has not been measured again: "
        f"the figures say nothing about packed rows.\n\n{summary['hardware'].iloc[0]}; {summary['versions'].iloc[0]}.\n\n"
    )
    return f"{text}{markdown(summary)}\n"


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--price", type=float, default=PRICE, help="dollars an hour of a card")
    args: Any = parser.parse_args()
    print(page(price=args.price), end="")


if __name__ == "__main__":
    end_in_one_line(main)
