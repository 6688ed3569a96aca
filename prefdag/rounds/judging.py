"""What a judge says of several answers to a prompt."""

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from prefdag.config.judges import EndpointJudge, Judge
from prefdag.config.verify import VerifyJudge
from prefdag.lifecycle.progress import progress
from prefdag.rounds.votes import Couple, Judged, Vote, by_scores, by_votes, rows_by_prompt, vote
from prefdag.text.evaluation import judge, judging, verify

if TYPE_CHECKING:
    from prefdag.pairs.turns import Asked
    from prefdag.text.evaluation.judging import Needs


def head_to_head(one: pd.DataFrame, other: pd.DataFrame, dialogues: Mapping[str, "Asked"]) -> pd.DataFrame:
    """`judge.contests` of sampled answers: those of `other` are in the policy's place."""
    return judge.contests(one.assign(decoding="sampled"), other.assign(decoding="sampled"), dialogues)


def judged(
    config: Judge, answers: pd.DataFrame, dialogues: Mapping[str, "Asked"], needs: "Needs", where: str
) -> Judged:
    """What a judge says of answers, several to each prompt.

    A judge that scores answers votes for the one with the higher score. The score of an endpoint and of a program that
    takes its checks in order, which only compare, is the mean of an answer's votes.
    """
    groups = rows_by_prompt(answers)
    couples = [couple for rows in groups for couple in combinations(rows, 2)]

    def verdicts(seen: list[Couple]) -> pd.DataFrame:
        one, other = (answers.iloc[list(rows)] for rows in zip(*seen, strict=True))
        return judging.verdicts(config, head_to_head(one, other, dialogues), needs, where)

    match config:
        case VerifyJudge():
            return _by_program(config, answers, dialogues, couples, needs, where)
        case EndpointJudge():
            found = verdicts(couples)
            if config.principles is None:
                found = found.assign(points=found["outcome"].map(judge.OUTCOMES), decided_by="")
            cast = (Vote(1 - points, name) for points, name in zip(found["points"], found["decided_by"], strict=True))
            return by_votes(len(answers), dict(zip(couples, cast, strict=True)))
    seen = [couple for rows in groups for couple in two_by_two(rows)]
    found = verdicts(seen)
    scores = np.full(len(answers), np.nan)
    for side, column in enumerate(("reward_reference", "reward_policy")):
        scores[[couple[side] for couple in seen]] = found[column]
    return by_scores(scores, couples)


def _by_program(
    config: VerifyJudge,
    answers: pd.DataFrame,
    dialogues: Mapping[str, "Asked"],
    couples: Iterable[Couple],
    needs: "Needs",
    where: str,
) -> Judged:
    score = verify.scorer(config, judging.own_checks(needs), f"params.yaml: {where}.checks")
    chosen = judge.chosen_responses(needs.messages, answers["id"])
    found = []
    with progress(len(answers), "answer", "verify") as bar:
        for key, text in zip(answers["id"], answers["text"], strict=True):
            found.append(score(verify.Question(key, dialogues[key].messages, chosen[key]), text))
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
