"""The arms of the study of rounds, which `rounds.py` measures: the pairs or responses each makes, and its training on them."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from benchmarks.fitting import fitted, unwatched
from prefdag.runtime.artifacts import read_json, read_table, sha256, write_json, writing

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

START = "start"
BATCH = 4
AT_ONCE = 256  # answers generated at once


@dataclass(frozen=True)
class Study:
    """Where the study reads and writes. Each of two rounds has `prompts` prompts, a single one twice as many."""

    folder: Path
    work: Path
    params: "Params"
    prompts: int = 48

    @classmethod
    def of(cls, folder: Path, work: Path) -> "Study":
        from prefdag.check_params import load_params

        return cls(folder, work, load_params(folder / "params.yaml"))

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
        changes = {"batch_size": BATCH, "micro_batch_size": BATCH, "learning_rate": rate}
        return replace(own, training=unwatched(own.training, **changes))


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
    needs = Needs(study.reference, policy, Path(), plan, study.messages, lambda: study.preference, dict)
    found = judged_by_all(plan, answers, read_dialogues(study.messages, answers["id"].unique()), needs)
    assert found is not None
    answers, [judged] = found
    answers = answers.assign(score=judged.scores, scores=judged.scores[:, None].tolist())
    made = {"round": number, "policy": sha256(policy), "sampler": {"kind": "local"}, "seed": plan.seed}
    table, counts = pairing.pair_table(
        answers, judged.votes, plan, made, to_jsonable_python(plan.judge), study.tokenizer.stop_ids[0]
    )
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

    history = fitted(policy, tasks, config.training, seed, hooks)
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
