"""The settings of rounds and their plan: what is refused, and which stages a change of settings concerns."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from prefdag.check_params import check_params
from prefdag.config.rounds import Rounds
from prefdag.lifecycle.errors import ParamsError
from prefdag.project import dag
from prefdag.rounds.places import place
from prefdag.rounds.plan import PLANS, plans
from prefdag.rounds.supported import check_training
from prefdag.runtime.dvc_files import files, read_dag
from prefdag.runtime.yaml import read_yaml

Change = Callable[..., Rounds]


def tree(**changes: Any) -> dict[str, Any]:
    params = read_yaml(ROOT / "params.yaml")
    params["rounds"] |= changes
    return params


def rounds(**changes: Any) -> Rounds:
    return check_params(tree(**changes), Path("params.yaml")).rounds


def changed(before: Rounds, after: Rounds) -> set[str]:
    """The plans that differ, as NUMBER/STAGE."""
    old, new = plans(before), plans(after)
    return {f"{number}/{stage}" for number, own in new.items() for stage in own if own[stage] != old[number][stage]}


def test_the_committed_parameters_plan_no_round() -> None:
    assert {plan for own in plans(rounds()).values() for plan in own.values()} == {None}


def test_a_higher_count_leaves_the_earlier_rounds_as_they_are() -> None:
    assert changed(rounds(count=2), rounds(count=3)) == {f"3/{stage}" for stage in PLANS}


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ({"samples": 8}, {"sample", "evaluate"}),
        ({"min_margin": 0.5}, {"judge"}),
        ({"train_on": "new"}, {"train", "evaluate"}),
        ({"stop_below": 0.4}, {"evaluate"}),
    ],
)
def test_a_change_of_one_round_concerns_the_stages_that_read_it(change: dict[str, Any], stages: set[str]) -> None:
    """Round 2 alone changes; what it makes of it then changes round 3."""
    after = changed(rounds(count=3), rounds(count=3, overrides={"2": change}))
    assert after == {f"2/{stage}" for stage in stages}


def test_each_round_takes_other_prompts() -> None:
    """A round starts where the one before it ends, also if that takes another number of prompts."""
    own = plans(rounds(count=3, prompts=10, overrides={"2": {"prompts": 3}}))
    assert [(own[n]["sample"]["skip"], own[n]["sample"]["prompts"]) for n in (1, 2, 3)] == [(0, 10), (10, 3), (13, 10)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 4}, "rounds.count: input should be less than or equal to 3, not 4"),
        ({"stopping_judge": {"kind": "implicit"}}, "rounds: stopping_judge is the judge that makes the pairs; choose"),
        ({"select": {"by": "random", "budget": None}}, "rounds.select: by 'random' needs a budget"),
        ({"select": {"by": "all", "budget": 3}}, "rounds.select: by 'all' does not use budget"),
        ({"overrides": {"4": {}}}, "rounds: overrides.4: no such round; choose from 1, 2, 3"),
        (
            {"overrides": {"2": {"smaples": 8}}},
            "rounds: overrides.2.smaples: unknown key; did you mean 'samples'?",
        ),
        (
            {"overrides": {"2": {"samples": 1}}},
            "rounds: overrides.2.samples: Input should be greater than or equal to 2",
        ),
        (
            {"overrides": {"2": {"stopping_judge": {"kind": "implicit"}}}},
            "rounds: overrides.2: stopping_judge is the judge",
        ),
    ],
)
def test_wrong_settings_are_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError) as caught:
        rounds(**changes)
    assert str(caught.value).startswith(f"params.yaml: {message}")
    assert "\n" not in str(caught.value)


ENDPOINT = {"kind": "endpoint", "url": "https://host/v1", "model": "a", "max_tokens": 9, "timeout": 9.0}


def test_two_judges_differ_by_what_they_judge_with() -> None:
    with pytest.raises(ParamsError, match="stopping_judge is the judge"):  # only asked in another way
        rounds(judge=ENDPOINT, stopping_judge=ENDPOINT | {"timeout": 60.0, "parallel": 2})
    assert rounds(judge=ENDPOINT, stopping_judge=ENDPOINT | {"model": "b"})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("reference", {"update": "polyak", "alpha": 0.1, "every": None, "logps": "live"}, "dpo_text.reference.update"),
        ("adapter", "qlora", "dpo_text.adapter.kind"),
    ],
)
def test_trainings_that_rounds_cannot_continue_are_refused(key: str, value: Any, message: str) -> None:
    params = tree()
    if key == "adapter":
        params["dpo_text"]["adapter"]["kind"] = value
        params["dpo_text"]["reference"]["logps"] = "live"
    else:
        params["dpo_text"][key] = value
    with pytest.raises(ParamsError, match=message):
        check_training(check_params(params, Path("params.yaml")).dpo_text)
    check_training(check_params(tree(), Path("params.yaml")).dpo_text)


# dvc.yaml


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_stage_finds_its_files_where_dvc_does(number: int) -> None:
    """The scripts name their paths as dvc.yaml does, and put the number in themselves."""
    raw = {name: entry for file in files(ROOT / "dvc.yaml") for name, entry in read_yaml(file)["stages"].items()}
    filled = read_dag(ROOT / "dvc.yaml")
    for name in ("sample_round", "judge_round", "dpo_round", "evaluate_round"):
        for key in ("deps", "outs"):
            ours = [str(place(Path(path), number)) for path in dag.names(raw[name]["do"], key)]
            assert ours == dag.names(filled[f"{name}@{number}"], key)
            assert "$" not in json.dumps(ours)
