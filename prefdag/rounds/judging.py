"""The judges of judge_text, in rounds: scores of several answers to a prompt, or verdicts on two models' answers."""

import hashlib
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from prefdag.config.judges import EndpointJudge, ImplicitJudge, Judge, RewardModelJudge, automatic
from prefdag.config.verify import VerifyJudge
from prefdag.lifecycle.launcher import rank
from prefdag.lifecycle.progress import progress
from prefdag.rounds import selecting
from prefdag.rounds.votes import Couple, Judged, Vote, by_scores, by_votes, only, vote
from prefdag.runtime.artifacts import scratch
from prefdag.text.endpoint import key_from_environment
from prefdag.text.evaluation import endpoint, judge, verify
from prefdag.text.sharded import load_both

if TYPE_CHECKING:
    from prefdag.config.round import Computing
    from prefdag.dpo.preference import Preference
    from prefdag.pairs.turns import Asked
    from prefdag.rounds.plan import JudgePlan

SHARED = (ImplicitJudge, RewardModelJudge)  # every process takes part; of the others, only the first one asks


class Needs(NamedTuple):
    """What judges need besides the answers."""

    reference: Path
    policy: Path  # before the round: against the reference, it is the implicit judge
    preference: "Preference"
    computing: "Computing"
    chosen: Mapping[str, str | None]  # responses of the prompts' pairs, by prompt id, for checks
    own: Mapping[str, verify.Function]  # checks of the user's


def contests(answers: pd.DataFrame, dialogues: Mapping[str, "Asked"], couples: Iterable[Couple]) -> pd.DataFrame:
    """Contests of two answers to a prompt, as judges take them (`judge.contests`): rows of `answers` by number.

    The first answer of a couple is in the reference's place, the second in the policy's.
    """
    rows: list[dict[str, Any]] = []
    records = answers.to_dict("records")
    for one, other in couples:
        first, second = records[one], records[other]
        asked = dialogues[str(first["id"])]
        rows.append(
            {"id": first["id"], "decoding": "sampled", "prompt_ids": first["prompt_ids"]}
            | {f"{column}_reference": first[column] for column in ("text", "ids", "tokens")}
            | {f"{column}_policy": second[column] for column in ("text", "ids", "tokens")}
            | {"messages": asked.messages, "tools": asked.tools}
        )
    table = pd.DataFrame(rows)
    return table.assign(tools=pd.Series([row["tools"] for row in rows], dtype=object))


def head_to_head(before: pd.DataFrame, after: pd.DataFrame, dialogues: Mapping[str, "Asked"]) -> pd.DataFrame:
    """Contests of two models' answers to the same prompts: the later model's is in the policy's place."""
    n = len(before)
    return contests(
        pd.concat([before, after], ignore_index=True), dialogues, zip(range(n), range(n, 2 * n), strict=True)
    )


def verdicts(config: Judge, pairs: pd.DataFrame, needs: Needs, where: str) -> pd.DataFrame:
    """The judge's verdicts on `contests`. Those of a judge that is not `SHARED` only the first process may ask for.

    Args:
        where: the judge's key in params.yaml.
    """
    match config:
        case ImplicitJudge():
            models = load_both(needs.reference, needs.policy, shard=needs.computing.shard)
            return judge.implicit(pairs, models, needs.preference, needs.computing.tokens_per_batch)
        case RewardModelJudge(source=source):
            pinned = hashlib.sha256(repr(source).encode()).hexdigest()[:16]
            folder = judge.fetch_reward_model(source, scratch("reward_models", pinned), where)
            return judge.reward_model(pairs, folder, where)
        case EndpointJudge():
            return endpoint.judge(pairs, config, key_from_environment(endpoint.KEY), where)
        case VerifyJudge():
            return judge.by_checks(pairs, needs.chosen, config, needs.own, where)


def merged_verdicts(verdicts: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Verdicts by name, with those of "judge.0", "judge.1", ... merged into "judge": the majority, or a tie."""
    several = [name for name in verdicts if name.startswith("judge.")]
    if not several:
        return dict(verdicts)
    points = np.array([verdicts[name]["outcome"].map(judge.OUTCOMES) for name in several], dtype=float)  # unread: NaN
    above = np.nansum(points - 0.5, axis=0)
    unread = np.isnan(points).all(axis=0)
    outcome = np.select([unread, above > 0, above < 0], ["unread", "win", "loss"], "tie")
    together = verdicts[several[0]][judge.KEYS].assign(outcome=outcome)
    return {"judge": together} | {name: each for name, each in verdicts.items() if name not in several}


def judged_by_all(
    plan: "JudgePlan", answers: pd.DataFrame, dialogues: Mapping[str, "Asked"], needs: Needs
) -> tuple[pd.DataFrame, list[Judged]] | None:
    """The answers to the prompts that the plan selects, and what each judge but people says of them. None on all but the first process.

    An endpoint, which may cost money, is asked about no other prompts, unless they are selected by its own disagreement.
    """
    judges, select, budget = automatic(plan.judge), plan.select.by, plan.select.budget or 0
    found: dict[str, Judged] = {}

    def ask(*kinds: type) -> None:
        for name, each in judges.items():
            if isinstance(each, kinds) and name not in found:
                found[name] = judged(each, answers, dialogues, needs, f"rounds.{name}")

    if select == "random":
        answers = _of_prompts(answers, selecting.at_random(_prompts(answers), budget, plan.seed))
    if select == "uncertainty":
        rewards = judged(ImplicitJudge(kind="implicit"), answers, dialogues, needs, "rounds.select").scores
        texts = answers["text"].to_numpy()
        unsure = [
            selecting.uncertainty(rewards[rows].tolist(), texts[rows].tolist()) for rows in rows_by_prompt(answers)
        ]
        answers = _of_prompts(answers, selecting.highest(_prompts(answers), unsure, budget, plan.seed))
    ask(*SHARED)
    if rank() > 0:
        return None
    ask(VerifyJudge)
    if select == "disagreement":
        if len(found) < 2:
            ask(EndpointJudge)
        texts = answers["text"].to_numpy()
        each = [
            selecting.disagreement(list(found.values()), rows, texts[rows].tolist()) for rows in rows_by_prompt(answers)
        ]
        kept = selecting.highest(_prompts(answers), each, budget, plan.seed)
        rows = np.flatnonzero(answers["id"].isin(kept)).tolist()
        found = {name: only(own, rows) for name, own in found.items()}
        answers = _of_prompts(answers, kept)
    ask(EndpointJudge)
    return answers, [found[name] for name in judges]


def _prompts(answers: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(answers["id"]))


def _of_prompts(answers: pd.DataFrame, prompts: set[str]) -> pd.DataFrame:
    return answers[answers["id"].isin(prompts)].reset_index(drop=True)


def judged(config: Judge, answers: pd.DataFrame, dialogues: Mapping[str, "Asked"], needs: Needs, where: str) -> Judged:
    """What a judge says of answers, several to each prompt.

    A judge that scores answers votes for the one with the higher score. The score of an endpoint and of a program that
    takes its checks in order, which only compare, is the mean of an answer's votes.
    """
    groups = rows_by_prompt(answers)
    couples = [couple for rows in groups for couple in combinations(rows, 2)]
    match config:
        case VerifyJudge():
            return _by_program(config, answers, dialogues, couples, needs, where)
        case EndpointJudge():
            outcomes = verdicts(config, contests(answers, dialogues, couples), needs, where)["outcome"]
            values = (1 - judge.OUTCOMES.get(outcome, np.nan) for outcome in outcomes)
            return by_votes(len(answers), {each: Vote(value) for each, value in zip(couples, values, strict=True)})
    seen = [couple for rows in groups for couple in two_by_two(rows)]
    found = verdicts(config, contests(answers, dialogues, seen), needs, where)
    scores = np.full(len(answers), np.nan)
    for side, column in enumerate(("reward_reference", "reward_policy")):
        scores[[couple[side] for couple in seen]] = found[column]
    return by_scores(scores, couples)


def rows_by_prompt(answers: pd.DataFrame) -> list[list[int]]:
    """The row numbers of the answers to each prompt."""
    places = pd.Series(range(len(answers)), index=answers["id"])
    return [rows.tolist() for _, rows in places.groupby(level=0, sort=False)]


def _by_program(
    config: VerifyJudge,
    answers: pd.DataFrame,
    dialogues: Mapping[str, "Asked"],
    couples: Iterable[Couple],
    needs: Needs,
    where: str,
) -> Judged:
    score = verify.scorer(config, needs.own, f"params.yaml: {where}.checks")
    found = []
    with progress(len(answers), "answer", "verify") as bar:
        for key, text in zip(answers["id"], answers["text"], strict=True):
            found.append(score(verify.Question(key, dialogues[key].messages, needs.chosen.get(key)), text))
            bar.update()
    votes = {(one, other): vote(*verify.rewards(config, found[one], found[other])) for one, other in couples}
    if config.combine == "mean":
        result = Judged(np.array([verify.mean(each) for each in found]), votes)
    else:
        result = by_votes(len(answers), votes)
    judge.check_comparable(result.scores, where)
    return result


def two_by_two(rows: list[int]) -> list[Couple]:
    """The rows in couples; the last one of an odd number is coupled with the first one."""
    rows = [*rows, *rows[: len(rows) % 2]]
    return list(zip(rows[::2], rows[1::2], strict=True))
