"""Rounds of DPO on the policy's own answers beside their controls, and prompts selected by uncertainty beside random ones.

    python -m benchmarks.rounds run FOLDER WORK    under an hour on one core; continues where it was stopped
    python -m benchmarks.rounds table              the results as the tables of docs/rounds.md

FOLDER is a run of the pipeline on the default data: data/pairs, data/validated, models/reference and models/dpo_text are read.
WORK keeps samples, models and answers. All arms start at models/dpo_text, and have the same training prompts within a seed and
nearly the same number of optimiser steps. A seed draws the prompts, the samples and the order of the rows. A learning rate is
the one of `RATES` that follows most instructions on the validation prompts, with the first seed. The test prompts, whose topics
are in no training prompt, are answered once by each policy, at the end.
"""

import argparse
import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from prefdag.runtime.artifacts import read_json, read_table, sha256, write_json, writing
from prefdag.stats import intervals
from prefdag.stats.paired import shares

if TYPE_CHECKING:
    from torch import nn

    from prefdag.config.dpo_text import DpoText
    from prefdag.config.params import Params
    from prefdag.config.round import RoundNumber, Select
    from prefdag.config.rounds import Rounds
    from prefdag.dpo.hook import StepHook
    from prefdag.dpo.preference import Preference
    from prefdag.text.scoring.packing import Group
    from prefdag.tokenizer.tokenizer import ChatTokenizer
    from prefdag.train.task import Tasks

RESULTS = Path(__file__).with_name("rounds.csv")
SEEDS = (0, 1, 2)
RATES = (3e-4, 1e-3)
BATCH = 4  # half the default, for twice the steps
AT_ONCE = 256  # answers generated at once
VAL_SAMPLES = 4  # answers to each validation prompt
KL_PROMPTS = 32  # whose answers the KL is measured on
START = "start"
KINDS = {  # of instructions, by words in them
    "sentences": "exactly",
    "at most": "at most",
    "at least": "at least",
    "question": "question",
    "commas": "commas",
    "word": "use the word",
}


@dataclass(frozen=True)
class Study:
    """Where the study reads and writes. Each of two rounds has `prompts` prompts, a single one twice as many."""

    folder: Path
    work: Path
    params: "Params"
    prompts: int = 48

    @property
    def pairs(self) -> Path:
        return self.folder / "data/pairs"

    @property
    def messages(self) -> Path:
        return self.folder / "data/validated/pairs.parquet"

    @property
    def reference(self) -> Path:
        return self.folder / "models/reference"

    @property
    def start(self) -> Path:
        return self.folder / "models/dpo_text"

    @cached_property
    def tokenizer(self) -> "ChatTokenizer":
        from prefdag.tokenizer.tokenizer import ChatTokenizer

        return ChatTokenizer(
            self.reference, self.params.format_pairs.template, self.params.format_pairs.template_options
        )

    @property
    def preference(self) -> "Preference":
        from prefdag.dpo.preference import Preference

        return Preference(self.params.loss, self.params.beta, self.params.loss_options, {}, {})

    def rounds(self, seed: int, prompts: int, select: "Select | None" = None) -> "Rounds":
        """The settings of FOLDER's params.yaml for rounds of `prompts` prompts, each of which trains on its own pairs."""
        own = self.params.rounds
        changes = {"count": 2, "prompts": prompts, "seed": seed, "train_on": "new", "batch_size": AT_ONCE}
        return replace(own, **changes, select=select or own.select)

    def dpo_text(self, rate: float) -> "DpoText":
        own = self.params.dpo_text
        never = 10**9  # no checkpoint, and no validation between the first and the last
        changes = {"batch_size": BATCH, "micro_batch_size": BATCH, "learning_rate": rate}
        training = replace(own.training, **changes, validate_every=never, checkpoint_every=never)
        return replace(own, training=training)


# What the stages of a round do


def plan_of(rounds: "Rounds", number: "RoundNumber", stage: str) -> Any:
    """What plan_rounds writes for a stage of a round."""
    from prefdag.rounds.plan import PLANS, plans

    return TypeAdapter(PLANS[stage]).validate_json(json.dumps(plans(rounds)[number][stage]))


def prompts_of_round(study: Study, rounds: "Rounds", number: "RoundNumber") -> pd.DataFrame:
    """The training prompts of a round: `id`, `prompt_ids`."""
    from prefdag.rounds.sampling import picked, prompts_of
    from prefdag.text.scoring.rows import read_split

    return picked(prompts_of(read_split(study.pairs, "train")), plan_of(rounds, number, "sample"), number)


def sample(study: Study, rounds: "Rounds", number: "RoundNumber", policy: Path) -> pd.DataFrame:
    """The policy's answers to the prompts of a round. They are kept, and shared by all arms that ask for the same."""
    from prefdag.rounds.sampling import sampled
    from prefdag.text.sharded import load_both

    plan, prompts = plan_of(rounds, number, "sample"), prompts_of_round(study, rounds, number)
    drawn = (plan.seed, plan.samples, plan.temperature, plan.top_p, plan.max_new_tokens)
    key = hashlib.sha256(json.dumps([sha256(policy), number, prompts["id"].tolist(), drawn]).encode()).hexdigest()
    path = study.work / "samples" / f"{key[:16]}.parquet"
    if not path.exists():
        model = load_both(study.reference, policy, shard="none", packed=False).policy
        name = f"round {number}"
        rows = sampled(model, prompts, plan, study.tokenizer, samples=plan.samples, number=number, name=name)
        rows = rows.assign(prompt=[study.tokenizer.decode(ids) for ids in rows["prompt_ids"]])
        with writing(path) as temporary:
            rows.to_parquet(temporary, index=False)
    return read_table(path).to_pandas()


def judge(
    study: Study, rounds: "Rounds", number: "RoundNumber", policy: Path, answers: pd.DataFrame, folder: Path
) -> pd.DataFrame:
    """Write the pairs of a round to `folder`, as judge_round does. Returns the judged answers with their `score`."""
    from prefdag.pairs.turns import read_dialogues
    from prefdag.rounds import pairing
    from prefdag.rounds.asking import judged_by_all
    from prefdag.text.evaluation.judging import Needs

    plan = plan_of(rounds, number, "judge")
    needs = Needs(study.reference, policy, plan, study.messages, lambda: study.preference, dict)
    found = judged_by_all(plan, answers, read_dialogues(study.messages, answers["id"].unique()), needs)
    assert found is not None
    answers, [judged] = found
    answers = answers.assign(score=judged.scores, scores=judged.scores[:, None].tolist())
    made = {"round": number, "policy": sha256(policy), "sampler": {"kind": "local"}, "seed": plan.seed}
    table, counts = pairing.pair_table(answers, judged.votes, plan, made, {}, study.tokenizer.stop_ids[0])
    with writing(folder) as temporary:
        temporary.mkdir()
        pairing.write(temporary, table, answers, counts | {"round": number})
    return answers


def train_dpo(
    study: Study, rounds: "Rounds", number: "RoundNumber", before: Path, pairs: Path, rate: float, target: Path
) -> None:
    """Train the policy of a round, as dpo_round does."""
    from prefdag.rounds.training import all_logps, round_run, start_policy
    from prefdag.text.scoring.rows import read_split
    from prefdag.text.sharded import load_both

    plan, config = plan_of(rounds, number, "train"), study.dpo_text(rate)
    # `round_run` needs validation pairs; one is enough, since nothing is decided by them.
    splits = {"train": read_split(pairs, "train"), "val": read_split(study.pairs, "val").take(np.arange(1))}
    models = load_both(study.reference, before, shard="none")
    logps = all_logps(models, splits, plan, mismatched=False)
    del models
    policy = start_policy(study.reference, before, config, plan, rounds.seed)
    run = round_run(policy, splits, study.preference, config, plan, logps, str)
    fit_and_save(study, policy, run.tasks, run.hooks, config, rounds.seed, target)


def train_sft(
    study: Study, groups: Sequence["Group"], ids: Sequence[str], seed: int, rate: float, target: Path
) -> None:
    """Train the first policy further with cross-entropy on responses."""
    from prefdag.rounds.training import start_policy
    from prefdag.text.sft_task import sft_task
    from prefdag.train.task import Tasks

    config = study.dpo_text(rate)
    plan = plan_of(study.rounds(seed, study.prompts), 1, "train")
    policy = start_policy(study.reference, study.start, config, plan, seed)
    fit_and_save(study, policy, Tasks(sft_task(groups, ids), None), [], config, seed, target)


def fit_and_save(
    study: Study,
    policy: "nn.Module",
    tasks: "Tasks",
    hooks: Sequence["StepHook"],
    config: "DpoText",
    seed: int,
    target: Path,
) -> None:
    """Train, and write the adapter to `target`, with the number of rows and steps in `trained.json`."""
    from prefdag.text.trainable import save_policy
    from prefdag.train.checkpoint import Checkpoints
    from prefdag.train.loop import fit

    with tempfile.TemporaryDirectory() as empty:
        checkpoints = Checkpoints(Path(empty))
        history = fit(
            policy, tasks, config.training, seed=seed, checkpoints=checkpoints, log=lambda *_: None, hooks=hooks
        )
    with writing(target) as folder:
        folder.mkdir()
        save_policy(policy, folder, study.reference)
        write_json(folder / "trained.json", {"rows": len(tasks.train.weights), "steps": len(history.train)})


# The arms: each returns the folders of the models it trained, the last one being its policy


def trained(target: Path, train: Callable[[], None]) -> Path:
    """`target`, which `train` writes if it is not there yet."""
    if not target.exists():
        print(f"training {target.name}", flush=True)
        train()
    return target


def judged(study: Study, seed: int, select: "Select | None" = None) -> tuple[pd.DataFrame, Path]:
    """The first policy's scored answers to twice the prompts of a round, and the folder of the pairs that they make."""
    rounds = study.rounds(seed, 2 * study.prompts, select)
    folder = study.work / "pairs" / f"{select.by if select else 'all'}-{seed}"
    return judge(study, rounds, 1, study.start, sample(study, rounds, 1, study.start), folder), folder


def one_round(study: Study, seed: int, rate: float, select: "Select | None" = None) -> list[Path]:
    """DPO on the pairs of one round with twice the prompts, or with those that `select` takes of them."""
    target = study.work / "models" / f"{select.by if select else 'one'}-{seed}-{rate:g}"

    def train() -> None:
        _, pairs = judged(study, seed, select)
        train_dpo(study, study.rounds(seed, 2 * study.prompts), 1, study.start, pairs, rate, target)

    return [trained(target, train)]


def two_rounds(study: Study, seed: int, rate: float) -> list[Path]:
    """Two rounds of DPO. The first one takes half of the samples of `one_round`: an answer does not depend on other prompts."""
    rounds, twice = study.rounds(seed, study.prompts), study.rounds(seed, 2 * study.prompts)
    policies = [study.start]
    for number in (1, 2):
        name, before = f"two-{number}-{seed}-{rate:g}", policies[-1]

        def train(name: str = name, before: Path = before, number: "RoundNumber" = number) -> None:
            if number == 1:
                answers = sample(study, twice, 1, before)
                own = prompts_of_round(study, rounds, 1)["id"]
                answers = answers[answers["id"].isin(own)].reset_index(drop=True)
            else:
                answers = sample(study, rounds, number, before)
            pairs = study.work / "pairs" / name
            judge(study, rounds, number, before, answers, pairs)
            train_dpo(study, rounds, number, before, pairs, rate, study.work / "models" / name)

        policies.append(trained(study.work / "models" / name, train))
    return policies[1:]


def best_of_n(study: Study, seed: int, rate: float) -> list[Path]:
    """Rejection sampling: cross-entropy on the first right one of a prompt's samples, as many as `one_round` has pairs."""
    from prefdag.text.scoring.packing import Group

    target = study.work / "models" / f"best-{seed}-{rate:g}"

    def train() -> None:
        answers, pairs = judged(study, seed)
        right = answers[answers["score"] == 1].drop_duplicates("id")
        right = right.iloc[some(len(right), pairs, seed)]
        groups = [Group(list(row["prompt_ids"]), (list(row["ids"]),)) for row in right.to_dict("records")]
        train_sft(study, groups, right["id"].tolist(), seed, rate, target)

    return [trained(target, train)]


def given(study: Study, seed: int, rate: float) -> list[Path]:
    """Cross-entropy on the chosen responses of the data to the same prompts, as many as `one_round` has pairs."""
    from prefdag.text.scoring.rows import chosen_groups, read_split, with_chosen

    target = study.work / "models" / f"given-{seed}-{rate:g}"

    def train() -> None:
        answers, pairs = judged(study, seed)
        every = with_chosen(read_split(study.pairs, "train"))
        own = np.flatnonzero(np.isin(every.ids, answers["id"].unique()))
        rows = every.take(own[some(len(own), pairs, seed)])
        train_sft(study, chosen_groups(rows), rows.ids, seed, rate, target)

    return [trained(target, train)]


def some(n: int, pairs: Path, seed: int) -> np.ndarray:
    """Of `n` rows as many at random as there are pairs, or all if they are fewer."""
    count = read_json(pairs / "summary.json")["pairs"]
    return np.sort(np.random.default_rng(seed).permutation(n)[:count])


def selected(by: str) -> Callable[[Study, int, float], list[Path]]:
    """As `one_round`, on a quarter of the prompts."""

    def arm(study: Study, seed: int, rate: float) -> list[Path]:
        from prefdag.config.round import Select

        select: Any = {"by": by, "budget": study.prompts // 2}
        return one_round(study, seed, rate, Select(**select))

    return arm


ARMS: Mapping[str, Callable[[Study, int, float], list[Path]]] = {
    "two rounds": two_rounds,
    "one round, twice the prompts": one_round,
    "best of n, cross-entropy": best_of_n,
    "chosen responses, cross-entropy": given,
    "a quarter, at random": selected("random"),
    "a quarter, by uncertainty": selected("uncertainty"),
}
SFT = ("best of n, cross-entropy", "chosen responses, cross-entropy")
TUNED = {False: "one round, twice the prompts", True: "best of n, cross-entropy"}  # by whether an arm is in `SFT`
COMPARED = [  # besides all with the start
    ("two rounds", "one round, twice the prompts"),
    ("two rounds", "best of n, cross-entropy"),
    ("two rounds", "chosen responses, cross-entropy"),
    ("one round, twice the prompts", "best of n, cross-entropy"),
    ("a quarter, by uncertainty", "a quarter, at random"),
]


# The measurement


def answer(study: Study, policy: Path, split: str, samples: int, name: str) -> pd.DataFrame:
    """The policy's greedy answer and `samples` sampled ones to each prompt of a split, kept in WORK.

    Their decoding is that of answer_text. `followed`: the instruction is; `kind`: of the instruction.
    """
    from prefdag.pairs.turns import read_dialogues
    from prefdag.rounds.sampling import prompts_of
    from prefdag.text.evaluation.instructions import found
    from prefdag.text.generation import answers
    from prefdag.text.generation.decoding import continuations
    from prefdag.text.scoring.rows import read_split
    from prefdag.text.sharded import load_both

    path = study.work / "answers" / f"{name}, {split}.parquet"
    if path.exists():
        return pd.read_parquet(path)
    own, tokenizer = study.params.answer_text, study.tokenizer
    prompts = prompts_of(read_split(study.pairs, split))
    written = continuations(
        load_both(study.reference, policy, shard="none", packed=False).policy,
        prompts["prompt_ids"].tolist(),
        [[None, *([own.seed, number, *key.encode()] for number in range(samples))] for key in prompts["id"]],
        sampling=(own.temperature, own.top_p),
        max_new_tokens=own.max_new_tokens,
        stop_ids=tokenizer.stop_ids,
        batch_size=max(1, AT_ONCE // (1 + samples)),
        name=f"{name}, {split}",
    )
    dialogues = read_dialogues(study.messages, prompts["id"])
    asked = [str(dialogues[key].messages[-1]["content"]) for key in prompts["id"]]
    parts = []
    for number in range(1 + samples):
        ids = [each[number] for each in written]
        texts = [tokenizer.decode(each[:-1] if each[-1] in tokenizer.stop_ids else each) for each in ids]
        rows = answers.rows(prompts, texts, ids, tokenizer.stop_ids)
        stated = [list(found(question, text)) for question, text in zip(asked, texts, strict=True)]
        parts.append(
            rows.assign(
                decoding="sampled" if number else "greedy",
                asked=asked,
                followed=[all(each.followed for each in some) for some in stated],
                kind=[kind_of(some[0].text) for some in stated],
            )
        )
    table = pd.concat(parts, ignore_index=True)
    with writing(path) as temporary:
        table.to_parquet(temporary, index=False)
    return table


def kind_of(instruction: str) -> str:
    return next(kind for kind, words in KINDS.items() if words in instruction.lower())


def kl_to_start(study: Study, policy: Path, answers: pd.DataFrame, name: str) -> float:
    """KL to the first policy on the policy's sampled answers to some prompts, nats per response; kept in WORK."""
    from prefdag.rounds.comparing import kl_to_reference
    from prefdag.text.model import ReferenceAndPolicy
    from prefdag.text.sharded import load_both

    path = study.work / "answers" / f"{name}, kl.json"
    if not path.exists():
        start, after = (load_both(study.reference, each, shard="none").policy for each in (study.start, policy))
        some = answers[answers["decoding"] == "sampled"][:KL_PROMPTS]
        found = kl_to_reference(ReferenceAndPolicy(start, after), some, study.params.rounds.tokens_per_batch)
        with writing(path) as temporary:
            write_json(temporary, found)
    return float(read_json(path)["kl_to_reference"])


def best_rate(study: Study, arm: str) -> float:
    """The learning rate with which the arm's policy follows most instructions on the validation prompts."""
    followed = {}
    for rate in RATES:
        policy = ARMS[arm](study, SEEDS[0], rate)[-1]
        rows = answer(study, policy, "val", VAL_SAMPLES, policy.name)
        followed[rate] = float(rows["followed"].mean())
        print(f"{arm}, learning rate {rate:g}: {followed[rate]:.3f} of {len(rows)} validation answers", flush=True)
    return max(RATES, key=lambda rate: followed[rate])


def run(study: Study) -> None:
    """Run everything that WORK does not have yet, then write the results."""
    every = {(START, 0): answer(study, study.start, "test", 1, START)}
    about: dict[tuple[str, int], dict[str, Any]] = {(START, 0): {}}
    rates = {sft: best_rate(study, arm) for sft, arm in TUNED.items()}
    for arm, seed in order():
        rate = rates[arm in SFT]
        policies = ARMS[arm](study, seed, rate)
        name = policies[-1].name
        every[arm, seed] = answer(study, policies[-1], "test", 1, name)
        counts = [read_json(policy / "trained.json") for policy in policies]
        about[arm, seed] = {
            "learning_rate": rate,
            "rows": sum(each["rows"] for each in counts),
            "steps": sum(each["steps"] for each in counts),
            "kl": kl_to_start(study, policies[-1], every[arm, seed], name),
        }
        pd.DataFrame(results(every, about)).to_csv(RESULTS, index=False, float_format="%.6g", lineterminator="\n")


def order() -> Iterator[tuple[str, int]]:
    """The arms of all seeds, those of selection last."""
    for some in (list(ARMS)[:4], list(ARMS)[4:]):
        for seed in SEEDS:
            for arm in some:
                yield arm, seed


# The results


def results(
    every: Mapping[tuple[str, int], pd.DataFrame], about: Mapping[tuple[str, int], Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """One row per arm, seed and decoding with what was measured, `against` empty, and one per comparison.

    Seed "all" has the means over the seeds, answers being averaged prompt by prompt; its intervals are over prompts.
    """
    arms = list(dict.fromkeys(arm for arm, _ in every))
    for decoding in ("greedy", "sampled"):
        tables = {
            key: table[table["decoding"] == decoding].set_index("id", drop=False).sort_index()
            for key, table in every.items()
        }
        seeds = {arm: [seed for own, seed in tables if own == arm] for arm in arms}
        followed = {arm: np.mean([tables[arm, seed]["followed"] for seed in seeds[arm]], axis=0) for arm in arms}
        for arm in arms:
            rows = [{**about[arm, seed], **measured(tables[arm, seed])} for seed in seeds[arm]]
            common = {"arm": arm, "decoding": decoding, "against": "", "n": len(followed[arm])}
            for seed, row in zip(seeds[arm], rows, strict=True):
                low, high = intervals.share(tables[arm, seed]["followed"].astype(float).tolist())
                yield {**common, "seed": seed, **row, "followed_low": low, "followed_high": high}
            low, high = intervals.share(followed[arm].tolist())
            means = pd.DataFrame(rows).mean().to_dict()
            yield {**common, "seed": "all", **means, "followed_low": low, "followed_high": high}
        for arm, other in [(arm, START) for arm in arms if arm != START] + COMPARED:
            if not {arm, other} <= set(arms):
                continue
            common = {"arm": arm, "decoding": decoding, "against": other, "n": len(followed[arm])}
            for seed in seeds[arm]:
                own, theirs = tables[arm, seed], tables.get((other, 0 if other == START else seed))
                if theirs is not None:
                    found = shares(own["followed"].to_numpy(), theirs["followed"].to_numpy())
                    yield {**common, "seed": seed, **{name: found[name] for name in DIFFERENCE}}
            low, high = intervals.ratio_difference(followed[arm], followed[other], np.ones(len(followed[arm])))
            value = float((followed[arm] - followed[other]).mean())
            yield {**common, "seed": "all", **dict(zip(DIFFERENCE, (value, low, high), strict=True))}


DIFFERENCE = ("difference", "difference_low", "difference_high")


def measured(answers: pd.DataFrame) -> dict[str, float]:
    """Means over answers, distinct-2, and the share of instructions followed by kind."""
    from prefdag.text.generation.answers import distinct, ids_without_end

    means = {name: float(answers[name].astype(float).mean()) for name in ("followed", "tokens", "ended", "repetition")}
    kinds = answers.groupby("kind")["followed"].mean()
    by_kind = {f"followed_{kind}": float(kinds.get(kind, math.nan)) for kind in KINDS}
    return {**means, "distinct": distinct(ids_without_end(answers)) or 0.0, **by_kind}


def table() -> str:
    """The tables of docs/rounds.md, in Markdown."""
    every = pd.read_csv(RESULTS, keep_default_na=False, na_values=[""], dtype={"seed": str})
    every["against"] = every["against"].fillna("")
    return "\n\n".join([followed_table(every), other_table(every), compared_table(every)])


def followed_table(every: pd.DataFrame) -> str:
    """Instructions followed: the mean over seeds, their range, and the difference from the start."""
    lines = ["| trained on | rows, steps | greedy | from the start | sampled | from the start |", "|---" * 6 + "|"]
    for arm in every["arm"].unique():
        own = every[(every["arm"] == arm) & (every["against"] == "")]
        counts = own[own["seed"] == "all"].iloc[0]
        cells = [arm, "" if arm == START else f"{counts['rows']:.0f}, {counts['steps']:.0f}"]
        for decoding in ("greedy", "sampled"):
            rows = own[own["decoding"] == decoding].set_index("seed")["followed"]
            each = rows.drop("all")
            cells.append(f"{rows['all']:.0%}" + (f" ({each.min():.0%} to {each.max():.0%})" if len(each) > 1 else ""))
            cells.append("" if arm == START else difference(every, arm, START, decoding))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def other_table(every: pd.DataFrame) -> str:
    """What else changed, in sampled answers: means over seeds."""
    shown = {"tokens": ".1f", "ended": ".0%", "repetition": ".1%", "distinct": ".2f", "kl": ".2f"}
    kinds = [f"followed_{kind}" for kind in KINDS]
    headings = ["trained on", "tokens", "ended", "repetition", "distinct-2", "KL", *KINDS]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    rows = every[(every["seed"] == "all") & (every["against"] == "") & (every["decoding"] == "sampled")]
    for _, row in rows.iterrows():
        cells = [row["arm"], *(format(row[name], form) for name, form in shown.items())]
        cells += [format(row[name], ".0%") for name in kinds]
        lines.append(f"| {' | '.join(cells).replace('nan', '')} |")
    return "\n".join(lines)


def compared_table(every: pd.DataFrame) -> str:
    """Differences between arms."""
    lines = ["| difference | greedy | sampled |", "|---|---|---|"]
    for arm, other in COMPARED:
        if ((every["arm"] == arm) & (every["against"] == other)).any():
            cells = [difference(every, arm, other, decoding) for decoding in ("greedy", "sampled")]
            lines.append(f"| {arm} − {other} | {' | '.join(cells)} |")
    return "\n".join(lines)


def difference(every: pd.DataFrame, arm: str, other: str, decoding: str) -> str:
    """In percentage points, with its interval."""
    mine = every[(every["arm"] == arm) & (every["against"] == other) & (every["decoding"] == decoding)]
    value, low, high = (100 * mine[mine["seed"] == "all"].iloc[0][name] for name in DIFFERENCE)
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def main() -> None:
    """The command line."""
    from prefdag.check_params import load_params

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("folder", type=Path)
    running.add_argument("work", type=Path)
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(Study(arguments.folder, arguments.work, load_params(arguments.folder / "params.yaml")))
    else:
        print(table())


if __name__ == "__main__":
    main()
