"""Few pairs of a new domain: DPO that starts from the policy of another run, beside DPO that starts from the base model.

    python -m benchmarks.few_shot run GENERAL TRUTHFULQA WORK    35 minutes on one core; continues where it was stopped
    python -m benchmarks.few_shot table                          the tables of docs/few_shot.md

GENERAL is a run of the pipeline on the default data, the general domain: data/pairs, models/base, models/reference and
models/dpo_text are read. TRUTHFULQA is TruthfulQA.csv, the new domain: the best answer of a question is preferred to its first
incorrect one. WORK keeps the merged policy, the pairs, and every model's log-probabilities.

Each arm is a start, a kind of adapter and a number of pairs, which it sees `EPOCHS` times in steps of four. Its start is also
its reference. A seed draws the pairs (8 of the 32, 32 of the 128), their order and the adapter. The learning rate of a kind and
a start is the one of `RATES` with the lower loss on the new domain's validation pairs, with 32 pairs and the first seed, of
those that keep the KL on these pairs within health_text.kl_budget; the lowest rate, if none does.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from benchmarks.fitting import fitted, unwatched
from benchmarks.harness import run_or_table
from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import sha256, writing
from prefdag.stats import intervals

if TYPE_CHECKING:
    from torch import nn

    from prefdag.config.dpo_text import DpoText
    from prefdag.config.params import Params
    from prefdag.text.scoring.formatted import FormattedPairs

RESULTS = Path(__file__).with_name("few_shot.csv")
SHA256 = "f9bd9e859cc102cb1f647f1064da7e009be752c416845cf9fa56e6eaae403a7d"  # of TruthfulQA.csv
SEEDS = (0, 1, 2)
COUNTS = (8, 32, 128)
EPOCHS, BATCH = 2, 4
RATES = {"lora": (1e-3, 3e-3), "prefix": (1e-2, 3e-2)}
TUNED_ON = 32  # pairs
BASE, GENERAL = "base model", "general policy"
STARTS = {"lora": (BASE, GENERAL), "prefix": (GENERAL,)}
PREFIX_SEEDS = (0,)  # which cost less
PREFIX = 8  # tokens
AT_ONCE = 1024  # tokens scored at once
OLD_PAIRS = 100  # of the general domain's test split, the first ones
NEW, OLD, VAL = "new", "general", "validation"  # sets of pairs; all but the last are held out


class Arm(NamedTuple):
    """What is trained: nothing, with `pairs` 0 and no kind."""

    start: str
    kind: str
    pairs: int


@dataclass(frozen=True)
class Study:
    """Where the study reads and writes."""

    general: Path
    truthfulqa: Path
    work: Path
    params: "Params"

    @cached_property
    def starts(self) -> dict[str, Path]:
        """The models that training starts from. The general policy is made as download_model makes it."""
        from prefdag.text.convert import convert
        from prefdag.text.merge import merge

        models, merged = self.general / "models", self.work / "start"
        if not merged.exists():
            with writing(merged) as folder:
                folder.mkdir()
                convert(models / "reference", folder)
                merge(models / "dpo_text", models / "reference", folder)
        return {BASE: models / "base", GENERAL: merged}

    @cached_property
    def new(self) -> dict[str, "FormattedPairs"]:
        """The splits of the new domain."""
        from prefdag.text.scoring.rows import read_split

        folder = self.work / "pairs"
        if not folder.exists():
            with writing(folder) as temporary:
                temporary.mkdir()
                write_new(self, temporary)
        return {split: read_split(folder, split) for split in ("train", "val", "test")}

    @cached_property
    def sets(self) -> dict[str, "FormattedPairs"]:
        """The pairs that models score."""
        from prefdag.text.scoring.rows import read_split

        old = read_split(self.general / "data/pairs", "test")
        return {NEW: self.new["test"], OLD: old.take(np.arange(min(OLD_PAIRS, len(old)))), VAL: self.new["val"]}


def write_new(study: Study, folder: Path) -> None:
    """Write the splits of the new domain, formatted for the model."""
    from prefdag.pairs import formatting
    from prefdag.pairs.schema import read_pairs, write_pairs
    from prefdag.tokenizer.files import positions
    from prefdag.tokenizer.tokenizer import ChatTokenizer

    model, settings = study.starts[BASE], study.params.format_pairs
    settings = replace(settings, max_pairs=None, val_fraction=0.05, test_fraction=0.2, seed=0)
    tokenizer = ChatTokenizer(model, settings.template, settings.template_options)
    with TemporaryDirectory() as temporary:
        raw, validated = Path(temporary, "raw"), Path(temporary, "pairs.parquet")
        raw.mkdir()
        (raw / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs_of(study.truthfulqa))), "utf-8")
        write_pairs(validated, read_pairs(raw, "plain"))
        changes = Path(temporary, "changes.csv")
        formatting.format_pairs(validated, folder, changes, tokenizer, settings, positions(model))


def pairs_of(path: Path) -> Iterator[dict[str, str]]:
    """The rows of TruthfulQA.csv as pairs. Raises `DataError` if it is another file."""
    if sha256(path) != SHA256:
        raise DataError(
            f"{path.name}: its SHA-256 is {sha256(path)}, not {SHA256}; use TruthfulQA.csv of its repository"
        )
    with path.open(encoding="utf-8-sig", newline="") as stream:
        for row in csv.DictReader(stream):
            worse = row["Incorrect Answers"].split(";")[0].strip()
            yield {"prompt": row["Question"], "chosen": row["Best Answer"].strip(), "rejected": worse}


# Training


def settings_of(study: Study, kind: str, rate: float) -> "DpoText":
    """dpo_text of GENERAL's params.yaml, for few pairs."""
    from prefdag.config.adapter import Prefix

    own = study.params.dpo_text
    sizes = {"epochs": EPOCHS, "batch_size": BATCH, "micro_batch_size": BATCH}
    training = unwatched(own.training, **sizes, learning_rate=rate)
    adapter = Prefix(kind="prefix", tokens=PREFIX) if kind == "prefix" else own.adapter
    return replace(own, adapter=adapter, training=training)


def drawn(study: Study, pairs: int, seed: int) -> "FormattedPairs":
    """The training pairs of a seed: the first of its random order."""
    every = study.new["train"]
    return every.take(np.random.default_rng(seed).permutation(len(every))[:pairs])


def trained(study: Study, arm: Arm, seed: int, rate: float) -> "nn.Module":
    """The policy of an arm: as dpo_text trains it, in memory."""
    from prefdag.dpo.preference import Preference
    from prefdag.text.dpo_run import dpo_run, new_policy
    from prefdag.text.scoring.logps import all_pair_logps
    from prefdag.text.trainable import before_training

    params, config = study.params, settings_of(study, arm.kind, rate)
    policy = new_policy(study.starts[arm.start], config, seed)
    preference = Preference(params.loss, params.beta, params.loss_options, {}, {})
    start = before_training(policy)
    splits = {"train": drawn(study, arm.pairs, seed)}
    run = dpo_run(
        policy, splits, preference, config, lambda *rows: all_pair_logps(start, rows[-1], AT_ONCE, "reference"), str
    )
    fitted(policy, run.tasks, config.training, seed, run.hooks)
    return policy.eval()


# The measurement


def scored(study: Study, name: str, sets: Sequence[str], make: Callable[[], "nn.Module"]) -> pd.DataFrame:
    """Log-probabilities of the sets under the model that `make` makes: kept in WORK under `name`."""
    from prefdag.text.scoring.logps import all_pair_logps
    from prefdag.text.scoring.rows import pair_rows

    path = study.work / "logps" / f"{name}.parquet"
    if not path.exists():
        print(name, flush=True)
        model, parts = make(), []
        for of in sets:
            rows = study.sets[of]
            logps = all_pair_logps(model, pair_rows(rows), AT_ONCE, f"{name}, {of}")
            table = {"set": of, "id": rows.ids, "chosen": logps.chosen.logps, "rejected": logps.rejected.logps}
            parts.append(
                pd.DataFrame({**table, "chosen_tokens": rows.lengths[:, 1], "rejected_tokens": rows.lengths[:, 2]})
            )
        with writing(path) as temporary:
            pd.concat(parts).to_parquet(temporary, index=False)
    return pd.read_parquet(path).set_index(["set", "id"])


def of_start(study: Study, start: str) -> pd.DataFrame:
    from prefdag.text.model import load

    return scored(study, start, (NEW, OLD, VAL), lambda: load(study.starts[start]))


def of_arm(study: Study, arm: Arm, seed: int, rate: float) -> pd.DataFrame:
    name = f"{arm.kind}, {arm.start}, {arm.pairs} pairs, seed {seed}, {rate:g}"
    sets = (NEW, OLD, VAL) if (arm.pairs, seed) == (TUNED_ON, SEEDS[0]) else (NEW, OLD)
    return scored(study, name, sets, lambda: trained(study, arm, seed, rate))


def measured(policy: pd.DataFrame, start: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    """Measures of each pair of `policy`:

    reward: whether the chosen response has the higher log-ratio to the base model, which DPO's reward is (½: equal)
    own: the same to the arm's own start
    likely: whether it has the higher log-probability per token, without any reference
    chosen: its log-probability per token, in nats
    kl: from the start, estimated on both responses, in nats per response
    """
    ratio = {
        name: policy[["chosen", "rejected"]] - of.loc[policy.index, ["chosen", "rejected"]]
        for name, of in (("reward", base), ("own", start))
    }
    per_token = {side: policy[side] / policy[f"{side}_tokens"] for side in ("chosen", "rejected")}
    return pd.DataFrame(
        {
            **{name: right(each["chosen"] - each["rejected"]) for name, each in ratio.items()},
            "likely": right(per_token["chosen"] - per_token["rejected"]),
            "chosen": per_token["chosen"],
            "kl": (ratio["own"] ** 2).mean(axis=1) / 2,
        }
    )


def right(margin: "pd.Series[float]") -> Any:
    return (np.sign(margin) + 1) / 2


def loss_and_kl(policy: pd.DataFrame, start: pd.DataFrame, beta: float) -> tuple[float, float]:
    """DPO's loss on the validation pairs, and the KL from the start, in nats per response."""
    ratio = policy.loc[VAL, ["chosen", "rejected"]] - start.loc[VAL, ["chosen", "rejected"]]
    loss = np.logaddexp(0, -beta * (ratio["chosen"] - ratio["rejected"]))
    return float(loss.mean()), float((ratio**2).to_numpy().mean() / 2)


def best_rate(study: Study, kind: str, start: str) -> float:
    """The learning rate with the lower loss on the validation pairs, of those within the KL budget."""
    arm, before, params = Arm(start, kind, TUNED_ON), of_start(study, start), study.params
    tried = {rate: loss_and_kl(of_arm(study, arm, SEEDS[0], rate), before, params.beta) for rate in RATES[kind]}
    print(f"{kind}, {start}: loss and KL on validation pairs by learning rate: {tried}", flush=True)
    near = [rate for rate, (_, kl) in tried.items() if kl <= params.health_text.kl_budget]
    return min(near or [min(tried)], key=lambda rate: tried[rate][0])


def run(study: Study) -> None:
    """Run everything that WORK does not have yet, then write the results."""
    base = of_start(study, BASE)
    every = {
        (Arm(start, "", 0), 0): measured(of_start(study, start), of_start(study, start), base)
        for start in (BASE, GENERAL)
    }
    rates: dict[tuple[str, str], float] = {}
    for kind, starts in STARTS.items():
        rates |= {(kind, start): best_rate(study, kind, start) for start in starts}
        for pairs, seed in product(COUNTS, SEEDS if kind == "lora" else PREFIX_SEEDS):
            for start in starts:
                arm = Arm(start, kind, pairs)
                table = of_arm(study, arm, seed, rates[kind, start])
                every[arm, seed] = measured(table, of_start(study, start), base)
            pd.DataFrame(results(every, rates)).to_csv(RESULTS, index=False, float_format="%.5g", lineterminator="\n")


# The results

SHARES = ("reward", "own", "likely")
MEASURES = (*SHARES, "chosen", "kl")
ENDS = ("low", "high")


def results(
    every: Mapping[tuple[Arm, int], pd.DataFrame], rates: Mapping[tuple[str, str], float]
) -> Iterator[dict[str, Any]]:
    """A row per arm, seed and held-out set, and one for seed "all": means over seeds, with intervals over pairs.

    Then differences, seed "all": of an arm from its start, and of a start from the base model at the same number of pairs.
    """
    arms = list(dict.fromkeys(arm for arm, _ in every))
    for of in (NEW, OLD):
        tables = {key: table.loc[of] for key, table in every.items()}
        seeds = {arm: [seed for own, seed in tables if own == arm] for arm in arms}
        means = {arm: sum(tables[arm, seed][[*MEASURES]] for seed in seeds[arm]) / len(seeds[arm]) for arm in arms}
        for arm in arms:
            own: Any = means[arm]
            rate = rates.get((arm.kind, arm.start))
            steps = EPOCHS * -(-arm.pairs // BATCH)
            common = {**arm._asdict(), "set": of, "n": len(own), "against": "", "learning_rate": rate, "steps": steps}
            for seed in seeds[arm]:
                yield {**common, "seed": seed, **tables[arm, seed][[*MEASURES]].mean()}
            ends = {
                f"{name}_{end}": value
                for name in SHARES
                for end, value in zip(ENDS, intervals.share(own[name].tolist()), strict=True)
            }
            yield {**common, "seed": "all", **own.mean(), **ends}
            for other, against in ((Arm(arm.start, "", 0), "start"), (arm._replace(start=BASE), BASE)):
                if other != arm and other in means:
                    yield {**common, "against": against, "seed": "all", **differences(own, means[other])}


def differences(own: pd.DataFrame, other: Any) -> dict[str, float]:
    """Mean differences of the same pairs, with bootstrap intervals."""
    found: dict[str, float] = {}
    for name in (*SHARES, "chosen"):
        first, second = own[name].to_numpy(), other.loc[own.index, name].to_numpy()
        low, high = intervals.ratio_difference(first, second, np.ones(len(first)))
        found |= {name: float((first - second).mean()), f"{name}_low": low, f"{name}_high": high}
    return found


def table() -> str:
    """The tables of docs/few_shot.md, in Markdown."""
    every = pd.read_csv(RESULTS, dtype={"seed": str}).fillna({"against": "", "kind": ""})
    return "\n\n".join(
        [
            "**The new domain: pairs ranked right by reward over the base model**\n\n"
            + shares_table(every, NEW, "reward"),
            "**The general domain: the same**\n\n" + shares_table(every, OLD, "reward"),
            "**By log-probability per token**\n\n" + likely_table(every),
        ]
    )


def shares_table(every: pd.DataFrame, of: str, measure: str) -> str:
    """Shares by number of pairs: mean and range of the seeds, then the differences of the starts."""
    lines = [f"| start, adapter | {' | '.join(map(str, (0, *COUNTS)))} |", "|---" * (2 + len(COUNTS)) + "|"]
    for kind, starts in STARTS.items():
        for start in starts:
            cells = [spread(every, of, measure, Arm(start, kind if pairs else "", pairs)) for pairs in (0, *COUNTS)]
            if any(cells[1:]):
                lines.append(f"| {start}, {kind} | {' | '.join(cells)} |")
    cells = [difference(every, of, measure, Arm(GENERAL, "lora" if n else "", n), BASE) for n in (0, *COUNTS)]
    lines.append(f"| difference of the starts, lora | {' | '.join(cells)} |")
    return "\n".join(lines)


def likely_table(every: pd.DataFrame) -> str:
    """What needs no reference, and what training changed, at the ends."""
    headings = (
        "start, adapter, pairs",
        "new: ranked right",
        "general: ranked right",
        "new: KL",
        "general: KL",
        "general: chosen",
    )
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    rows = every[(every["seed"] == "all") & (every["against"] == "")]
    for (start, kind, pairs), part in rows.groupby(["start", "kind", "pairs"], sort=False):
        of = part.set_index("set")
        cells = [f"{start}, {kind}, {pairs}" if kind else f"{start}, none"]
        cells += [f"{of.loc[name, 'likely']:.0%}" for name in (NEW, OLD)]
        cells += [f"{of.loc[name, 'kl']:.2f}" for name in (NEW, OLD)]
        cells.append(f"{of.loc[OLD, 'chosen']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rows_of(every: pd.DataFrame, of: str, arm: Arm, against: str) -> pd.DataFrame:
    same = (every["start"] == arm.start) & (every["kind"] == arm.kind) & (every["pairs"] == arm.pairs)
    return every[same & (every["set"] == of) & (every["against"] == against)].set_index("seed")


def spread(every: pd.DataFrame, of: str, measure: str, arm: Arm) -> str:
    """The mean over seeds, and their range."""
    values = rows_of(every, of, arm, "")[measure]
    if values.empty:
        return ""
    each = values.drop("all")
    return f"{values['all']:.0%}" + (f" ({each.min():.0%} to {each.max():.0%})" if len(each) > 1 else "")


def difference(every: pd.DataFrame, of: str, measure: str, arm: Arm, against: str) -> str:
    """In percentage points, with its interval."""
    rows = rows_of(every, of, arm, against)
    if rows.empty:
        return ""
    every_value: Any = rows.loc["all"]
    value, low, high = (100 * every_value[name] for name in (measure, f"{measure}_low", f"{measure}_high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def study_of(general: Path, truthfulqa: Path, work: Path) -> Study:
    from prefdag.check_params import load_params

    return Study(general, truthfulqa, work, load_params(general / "params.yaml"))


if __name__ == "__main__":
    run_or_table(__doc__ or "", lambda *folders: run(study_of(*folders)), table, "general", "truthfulqa", "work")
