"""Which judge is asked about which prompts."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from prefdag.config.judges import EndpointJudge, ImplicitJudge, automatic
from prefdag.config.verify import VerifyJudge
from prefdag.lifecycle.launcher import rank
from prefdag.rounds import judging, selecting
from prefdag.rounds.votes import Judged, only, rows_by_prompt
from prefdag.text.evaluation.judging import SHARED

if TYPE_CHECKING:
    from prefdag.pairs.turns import Asked
    from prefdag.rounds.plan import JudgePlan
    from prefdag.text.evaluation.judging import Needs


def judged_by_all(
    plan: "JudgePlan", answers: pd.DataFrame, dialogues: Mapping[str, "Asked"], needs: "Needs"
) -> tuple[pd.DataFrame, list[Judged]] | None:
    """The answers to the prompts that the plan selects, and what each judge but people says of them. None on all
    processes but the first.

    An endpoint, which may cost money, is asked about no other prompts, unless they are selected by its own disagreement.
    """
    judges, select, budget = automatic(plan.judge), plan.select.by, plan.select.budget or 0
    found: dict[str, Judged] = {}

    def ask(*kinds: type) -> None:
        for name, each in judges.items():
            if isinstance(each, kinds) and name not in found:
                found[name] = judging.judged(each, answers, dialogues, needs, f"rounds.{name}")

    if select == "random":
        answers = _of_prompts(answers, selecting.at_random(_prompts(answers), budget, plan.seed))
    if select == "uncertainty":
        rewards = judging.judged(ImplicitJudge(kind="implicit"), answers, dialogues, needs, "rounds.select").scores
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
