"""The plan of each round: one file for each of its stages, with no more than that stage reads. Imports no torch.

So a stage reruns only if its own settings change, and another number of rounds leaves the earlier ones as they are.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from prefdag.config.judges import Judges
from prefdag.config.round import (
    NUMBERS,
    Computing,
    Continuing,
    Pairing,
    PromptSource,
    RoundNumber,
    Sampler,
    Sampling,
    Stopping,
)
from prefdag.config.sources import Source
from prefdag.runtime.artifacts import read_json
from prefdag.runtime.types import Count, PositiveInt, strict

if TYPE_CHECKING:
    from prefdag.config.rounds import Rounds


@strict
class SamplePlan(Sampling, Sampler, Computing):
    prompts: PositiveInt
    source: Source | None  # of the prompts; None: the train split
    order: Count  # the seed of the prompts' order: that of all rounds, so that each takes other prompts
    skip: Count  # prompts of the same source that earlier rounds take


@strict
class JudgePlan(Pairing, Computing):
    seed: Count


@strict
class TrainPlan(Continuing, Computing):
    pass


@strict
class EvaluatePlan(Sampling, Computing, Continuing, Stopping):
    prompts: PositiveInt
    judge: Judges  # made the pairs


PLANS = {"sample": SamplePlan, "judge": JudgePlan, "train": TrainPlan, "evaluate": EvaluatePlan}
SCRIPTS = {"sample": "sample_round", "judge": "judge_round", "train": "dpo_round", "evaluate": "evaluate_round"}
KEY = "key"  # in a plan: changes with the code and the parameters of the stage, which then runs again
Plan = TypeVar("Plan", SamplePlan, JudgePlan, TrainPlan, EvaluatePlan)


def plans(rounds: "Rounds") -> dict[RoundNumber, Mapping[str, Any]]:
    """What each stage of each round reads, by the names of `PLANS`; null for a round that is off."""
    every: dict[RoundNumber, Mapping[str, Any]] = {}
    taken: dict[str, int] = {}  # by source
    for number in NUMBERS:
        own = rounds.round(number)
        source, count = (
            (own.prompts.source, own.prompts.count) if isinstance(own.prompts, PromptSource) else (None, own.prompts)
        )
        skip = taken.get(repr(source), 0)
        taken[repr(source)] = skip + count
        values = to_jsonable_python(own) | {"prompts": count, "source": to_jsonable_python(source)}
        values |= {"order": rounds.seed, "skip": skip}
        every[number] = {
            stage: {each.name: values[each.name] for each in fields(kind)} if number <= rounds.count else None
            for stage, kind in PLANS.items()
        }
    return every


def read_plan(path: Path, kind: type[Plan]) -> Plan:
    """The plan that `plan_rounds` wrote for a stage of a round that is on. Raises `DataError` if it is missing or broken."""
    tree = read_json(path)
    del tree[KEY]
    return TypeAdapter(kind).validate_json(json.dumps(tree))
