"""The judges of judge_text, in rounds: a score for each of several answers to a prompt, or verdicts on two models' answers."""

import hashlib
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from prefdag.config.judges import EndpointJudge, ImplicitJudge, Judge, RewardModelJudge
from prefdag.runtime.artifacts import scratch
from prefdag.text.endpoint import key_from_environment
from prefdag.text.evaluation import endpoint, judge
from prefdag.text.sharded import load_both

if TYPE_CHECKING:
    from prefdag.config.round import Computing
    from prefdag.dpo.preference import Preference
    from prefdag.pairs.turns import Asked


class Implicit(NamedTuple):
    """What the implicit judge needs: the policy before the round rewards answers, against the reference."""

    reference: Path
    policy: Path
    preference: "Preference"


def contests(
    answers: pd.DataFrame, dialogues: Mapping[str, "Asked"], couples: Iterable[tuple[int, int]]
) -> pd.DataFrame:
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


def verdicts(config: Judge, pairs: pd.DataFrame, implicit: Implicit, computing: "Computing") -> pd.DataFrame:
    """The judge's verdicts on `contests`. Of an endpoint's, only the first process may ask for them."""
    match config:
        case ImplicitJudge():
            models = load_both(implicit.reference, implicit.policy, shard=computing.shard)
            return judge.implicit(pairs, models, implicit.preference, computing.tokens_per_batch)
        case RewardModelJudge(source=source):
            pinned = hashlib.sha256(repr(source).encode()).hexdigest()[:16]
            return judge.reward_model(pairs, judge.fetch_reward_model(source, scratch("reward_models", pinned)))
        case EndpointJudge():
            return endpoint.judge(pairs, config, key_from_environment(endpoint.KEY))


def scores(
    config: Judge,
    answers: pd.DataFrame,
    dialogues: Mapping[str, "Asked"],
    implicit: Implicit,
    computing: "Computing",
) -> np.ndarray:
    """The score of each answer, (answers,), comparable among the answers to a prompt; NaN if the judge has none.

    That is its reward, or from a judge that only compares: the mean over the prompt's other answers of 1 where it is
    the better one, 1/2 for a tie, and 0.
    """
    places = pd.Series(range(len(answers)), index=answers["id"])
    groups = [rows.tolist() for _, rows in places.groupby(level=0, sort=False)]
    if isinstance(config, EndpointJudge):
        couples = [couple for rows in groups for couple in combinations(rows, 2)]
        found = verdicts(config, contests(answers, dialogues, couples), implicit, computing)
        return mean_outcomes(len(answers), couples, found["outcome"])
    couples = [couple for rows in groups for couple in two_by_two(rows)]
    found = verdicts(config, contests(answers, dialogues, couples), implicit, computing)
    result = np.full(len(answers), np.nan)
    for side, column in enumerate(("reward_reference", "reward_policy")):
        result[[couple[side] for couple in couples]] = found[column]
    return result


def two_by_two(rows: list[int]) -> list[tuple[int, int]]:
    """The rows in couples; the last one of an odd number is coupled with the first one."""
    rows = [*rows, *rows[: len(rows) % 2]]
    return list(zip(rows[::2], rows[1::2], strict=True))


def mean_outcomes(n: int, couples: list[tuple[int, int]], outcomes: Iterable[str]) -> np.ndarray:
    """The mean outcome of each of `n` answers over its couples, (n,); NaN if none could be read.

    Args:
        outcomes: of the couples, for the second one: win, tie, loss or unread.
    """
    points: list[list[float]] = [[] for _ in range(n)]
    for (one, other), outcome in zip(couples, outcomes, strict=True):
        if outcome in judge.OUTCOMES:
            points[other].append(judge.OUTCOMES[outcome])
            points[one].append(1 - judge.OUTCOMES[outcome])
    return np.array([np.mean(each) if each else np.nan for each in points])
