"""The experiment that this project grew from: does DPO on hh-rlhf lower the cross-entropy of other texts, and does a higher
learning rate lower it more?

    python -m benchmarks.origin run WORK --profile origin                hours on a GPU; model and data from the hub
    python -m benchmarks.origin run WORK --profile origin-small --pairs FILE --truthfulqa FILE --winogrande FILE
    python -m benchmarks.origin page                                       the tables of docs/origin.md, and docs/origin.svg

WORK becomes a clone of the committed project. In it DVC runs the pipeline up to evaluate_text, once per learning rate and seed;
finished runs are not repeated. Local files can replace those of the hub. --pairs is a file of hh-rlhf: its last rows are kept
out of training and become the eval set pku. In the original, pku is processed-hh-rlhf: the same rows in another format.
"""

import argparse
import gzip
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from prefdag.project import profiles
from prefdag.runtime.artifacts import read_json, sha256
from prefdag.runtime.dvc_files import target
from prefdag.runtime.yaml import read_yaml
from prefdag.stats.intervals import mean, ratio_difference

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("origin.csv")
CURVES = Path(__file__).with_name("origin_curves.csv")
FIGURE = ROOT / "docs" / "origin.svg"
RATES = (5e-6, 1e-5)
SEEDS = (0, 1, 2)
KEPT_BACK = 300  # rows of --pairs kept for the eval set
KEPT = ("models/dpo_text/history.csv", "models/dpo_text/validation.csv", "reports/text/metrics.json")
ROWS = "reports/text/rows.parquet"
TABLES = {"truthfulqa": "TruthfulQA", "winogrande": "WinoGrande, right filling", "winogrande_wrong": "- wrong filling"}
TABLES |= {
    "winogrande_sentence": "- whole sentence",
    "pku": "hh-rlhf rows in place of PKU's",
    "heldout": "held-out pairs",
}


def run(work: Path, profile: str, files: Mapping[str, Path | None]) -> None:
    """Run every learning rate with every seed, then write the results as CSV files."""
    if not (work / ".git").exists():
        subprocess.run(["git", "clone", "--quiet", ROOT, work], check=True)
    subprocess.run(["git", "fetch", "--quiet", ROOT, "HEAD"], cwd=work, check=True)
    subprocess.run(["git", "reset", "--quiet", "--hard", "FETCH_HEAD"], cwd=work, check=True)
    tree = profiles.merge(read_yaml(work / "params.yaml"), read_yaml(work / "profiles" / f"{profile}.yaml"))
    use_files(tree, work, files)
    for rate in RATES:
        for seed in SEEDS:
            tree["seed"] = seed
            tree["dpo_text"]["training"]["learning_rate"] = rate
            with (work / "params.yaml").open("w", encoding="utf-8") as stream:
                YAML().dump(tree, stream)
            environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
            subprocess.run(["dvc", "repro", target("evaluate_text")], cwd=work, env=environment, check=True)
            kept = done(work, rate, seed)
            kept.mkdir(parents=True, exist_ok=True)
            for name in (*KEPT, ROWS):
                shutil.copy(work / name, kept)
    results(work, profile).to_csv(RESULTS, index=False, lineterminator="\n")
    curves(work).to_csv(CURVES, index=False, lineterminator="\n")


def done(work: Path, rate: float, seed: int) -> Path:
    """The folder for the results of one run."""
    return work / "runs" / f"{rate:g}-{seed}"


def use_files(tree: dict[str, Any], work: Path, files: Mapping[str, Path | None]) -> None:
    """Replace the hub's sources by local files. `pairs` is split into training rows and eval rows."""
    folder = work / "files"
    folder.mkdir(exist_ok=True)
    parts = dict(files)
    if pairs := parts.pop("pairs"):
        with gzip.open(pairs, "rt", encoding="utf-8") as stream:
            lines = list(stream)
        for name, part in (("trained", lines[:-KEPT_BACK]), ("pku", lines[-KEPT_BACK:])):
            parts[name] = folder / f"{name}.jsonl"
            parts[name].write_text("".join(part), "utf-8", newline="\n")
    for name, path in parts.items():
        if path is not None:
            source = {"kind": "path", "path": str(path.resolve()), "sha256": sha256(path)}
            if name == "trained":
                tree["download_pairs"]["source"] = source
            else:
                tree["download_evals"][name] = source


def results(work: Path, profile: str) -> pd.DataFrame:
    """Cross-entropies: one row per set, learning rate and seed, and one per set and learning rate over all seeds.

    `difference` is the policy's cross-entropy minus that of `against`, with its paired bootstrap interval over rows. One seed
    is compared with the base model. All seeds together, with log-probabilities averaged row by row, are also compared with
    the policies of the previous rate.
    """
    rows = []
    averages: dict[tuple[float, str], pd.DataFrame] = {}
    for rate in RATES:
        runs = [done(work, rate, seed) for seed in SEEDS]
        metrics = [read_json(run / "metrics.json") for run in runs]
        tables = [pd.read_parquet(run / Path(ROWS).name) for run in runs]
        for name in (each for each in TABLES if each in metrics[0]):
            common = {"profile": profile, "set": name, "learning_rate": rate}
            common |= {"n_rows": metrics[0][name]["n_rows"], "n_tokens": metrics[0][name]["n_tokens"]}
            for seed, values in zip(SEEDS, metrics, strict=True):
                change = values[name]["differences"]["policy_base"]
                entropies = {model: values[name][model]["cross_entropy"] for model in ("base", "policy")}
                rows.append({**common, "seed": seed, "against": "base", **entropies, **change})
            parts = [table[table["set"] == name].set_index("row") for table in tables]
            average = parts[0].assign(policy_logps=sum(part["policy_logps"] for part in parts) / len(parts))
            averages[rate, name] = average
            others = {"base": average["base_logps"]}
            if rate != RATES[0]:
                others[f"{RATES[0]:g}"] = averages[RATES[0], name]["policy_logps"]
            for against, other in others.items():
                rows.append({**common, "seed": "all", "against": against, **compared(average, other)})
    return pd.DataFrame(rows)


def compared(rows: pd.DataFrame, other: pd.Series) -> dict[str, float]:
    """Cross-entropies of base and policy in nats per token, and the policy's minus that of `other`, with its interval."""
    tokens = rows["n_tokens"].to_numpy(float)
    nats, others = -rows["policy_logps"].to_numpy(), -other.to_numpy()
    low, high = ratio_difference(nats, others, tokens)
    return {
        "base": float(-rows["base_logps"].sum() / tokens.sum()),
        "policy": float(nats.sum() / tokens.sum()),
        "difference": float((nats - others).sum() / tokens.sum()),
        "difference_low": low,
        "difference_high": high,
    }


def curves(work: Path) -> pd.DataFrame:
    """Validation metrics, one row per learning rate, seed and step; at the last step also the test split's."""
    tables = []
    for rate in RATES:
        for seed in SEEDS:
            kept = done(work, rate, seed)
            rewards = read_json(kept / "metrics.json")["heldout"]["rewards"]
            table = pd.read_csv(kept / "validation.csv")[["step", "loss", "rewards/margin", "rewards/accuracy"]]
            table = table.assign(split="val")
            table.loc[len(table)] = [table["step"].iloc[-1], None, rewards["margin"], rewards["accuracy"], "test"]
            tables.append(table.assign(learning_rate=rate, seed=seed))
    return pd.concat(tables)


def page() -> str:
    """The tables of docs/origin.md, in Markdown."""
    entropies = pd.read_csv(RESULTS, dtype={"seed": str})
    low, high = RATES
    lines = [
        f"| set | rows, tokens | base | {low:g} | {high:g} | {low:g} − base | {high:g} − {low:g} |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(entropies["set"]):
        mine = entropies[entropies["set"] == name]
        over = mine[mine["seed"] == "all"].set_index(["learning_rate", "against"])
        single = mine[mine["seed"] != "all"].pivot_table(index="seed", columns="learning_rate", values="policy")
        steps = {
            (low, "base"): single[low] - over.loc[(low, "base"), "base"],
            (high, f"{low:g}"): single[high] - single[low],
        }
        cells = [TABLES[name], f"{mine['n_rows'].iloc[0]:,}, {mine['n_tokens'].iloc[0]:,}"]
        cells.append(f"{over.loc[(low, 'base'), 'base']:.4f}")
        cells += [f"{over.loc[(rate, 'base'), 'policy']:.4f}" for rate in RATES]
        for key, by_seed in steps.items():
            row = over.loc[key]
            of_seeds = mean(by_seed.tolist())
            span = f"{row['difference_low']:+.5f} to {row['difference_high']:+.5f}"
            cells.append(f"{row['difference']:+.5f} ({span}; seeds {of_seeds[0]:+.5f} to {of_seeds[1]:+.5f})")
        lines.append(f"| {' | '.join(cells)} |")
    test = pd.read_csv(CURVES)
    test = test[test["split"] == "test"]
    lines += ["", "| learning rate | held-out accuracy | mean margin |", "|---|---|---|"]
    for rate in RATES:
        mine = test[test["learning_rate"] == rate]
        accuracy, margin = mine["rewards/accuracy"].tolist(), mine["rewards/margin"].tolist()
        spans = mean(accuracy), mean(margin)
        lines.append(
            f"| {rate:g} | {100 * sum(accuracy) / len(accuracy):.1f}% ({100 * spans[0][0]:.1f} to {100 * spans[0][1]:.1f}) "
            f"| {sum(margin) / len(margin):+.5f} ({spans[1][0]:+.5f} to {spans[1][1]:+.5f}) |"
        )
    return "\n".join(lines)


def draw() -> None:
    """Draw validation loss and reward margin by step: a faint line per seed, a strong line for the mean."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "prefdag", "svg.fonttype": "none"}
    from matplotlib import pyplot as plt

    points = pd.read_csv(CURVES)
    points = points[points["split"] == "val"]
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axes, (column, title) in zip(
        panels, {"loss": "Validation loss, nats per pair", "rewards/margin": "Mean reward margin"}.items(), strict=True
    ):
        for rate, color in zip(RATES, ("#8a6d1d", "#1f5fa8"), strict=True):
            table = points[points["learning_rate"] == rate].pivot_table(index="step", columns="seed", values=column)
            axes.plot(table, color=color, alpha=0.3, linewidth=0.8)
            axes.plot(table.mean(axis=1), color=color, marker="o", markersize=3, label=f"learning rate {rate:g}")
        axes.set(title=title, xlabel="optimiser step")
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(FIGURE, metadata={"Date": None})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("work", type=Path)
    running.add_argument("--profile", choices=("origin", "origin-small"), default="origin-small")
    for name in ("pairs", "truthfulqa", "winogrande"):
        running.add_argument(f"--{name}", type=Path)
    commands.add_parser("page")
    arguments = parser.parse_args()
    if arguments.command == "run":
        files = {name: getattr(arguments, name) for name in ("pairs", "truthfulqa", "winogrande")}
        run(arguments.work.resolve(), arguments.profile, files)
    draw()
    print(page())


if __name__ == "__main__":
    main()
