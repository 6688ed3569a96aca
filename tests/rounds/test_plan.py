"""The settings of rounds and their plan: what is refused, and which stages a change of settings concerns."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from paths import ROOT
from pydantic import TypeAdapter

from prefdag.check_params import check_params, load_params
from prefdag.config.round import NUMBERS
from prefdag.config.rounds import Rounds
from prefdag.dependencies import fingerprint, imports
from prefdag.lifecycle.errors import ParamsError
from prefdag.project import dag
from prefdag.project.pin import pin
from prefdag.rounds.places import place
from prefdag.rounds.plan import PLANS, SCRIPTS, SamplePlan, plans
from prefdag.rounds.sampling import picked
from prefdag.rounds.supported import check_pins, check_training
from prefdag.runtime.dvc_files import files, read_dag
from prefdag.runtime.yaml import read_yaml

Change = Callable[..., Rounds]


def tree(**changes: Any) -> dict[str, Any]:
    params = read_yaml(ROOT / "params.yaml")
    params["rounds"] |= {"judge": IMPLICIT} | changes
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
        (
            {"sampler": {"kind": "endpoint", "url": "http://h/v1", "model": "m", "timeout": 9.0, "tolerance": 0.1}},
            {"sample"},
        ),
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


IMPLICIT = {"kind": "implicit"}
BRIEF = {"kind": "verify", "checks": [{"kind": "length", "unit": "words", "max": 5}]}


def test_a_round_takes_the_next_prompts_of_its_source() -> None:
    """Prompts of the train split and those of files are counted apart."""
    mine = {"source": {"kind": "path", "path": "mine.jsonl", "sha256": "0" * 64}, "count": 7}
    settings = rounds(count=3, prompts=mine, overrides={"2": {"prompts": 3}})
    own = [plans(settings)[n]["sample"] for n in (1, 2, 3)]
    assert [(each["skip"], each["prompts"]) for each in own] == [(0, 7), (0, 3), (7, 7)]
    assert [each["source"] for each in own] == [mine["source"], None, mine["source"]]
    assert plans(settings)[1]["evaluate"]["prompts"] == 7


@pytest.mark.parametrize("what", ["prompts.source", "judge.1.principles"])
def test_a_path_needs_a_pin_which_prefdag_pin_writes(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").write_text("{}")
    source = {"kind": "path", "path": str(tmp_path / "mine"), "sha256": None}
    server = {"kind": "endpoint", "url": "https://host/v1", "model": "m", "max_tokens": 9, "timeout": 9.0}
    edits: dict[str, Any] = {"prompts": {"source": source, "count": 7}}
    if what != "prompts.source":
        edits = {"judge": [IMPLICIT, {**server, "principles": source}]}
    with pytest.raises(
        ParamsError, match=rf"^params.yaml: rounds.{what}.sha256: null, .*; `prefdag pin rounds` writes it"
    ):
        check_pins(rounds(count=1, **edits))
    check_pins(rounds(count=0, **edits))
    (tmp_path / "params.yaml").write_text(json.dumps(tree(count=1, **edits), indent=2), "utf-8")
    monkeypatch.chdir(tmp_path)
    assert not pin(["rounds"]).errors
    check_pins(load_params().rounds)


def test_rounds_with_other_seeds_take_other_prompts_too() -> None:
    own = plans(rounds(count=3, prompts=5, overrides={"2": {"seed": 1}, "3": {"seed": 2}}))
    table = pd.DataFrame({"id": [str(i) for i in range(15)]})
    read = TypeAdapter(SamplePlan).validate_json
    taken = [set(picked(table, read(json.dumps(own[n]["sample"])), n)["id"]) for n in NUMBERS]
    assert [len(each) for each in taken] == [5, 5, 5]
    assert len(set.union(*taken)) == 15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": 0}, "rounds.prompts: input should be greater than or equal to 1, not 0"),
        ({"prompts": {"source": {"kind": "path", "path": "a", "sha256": "0"}}}, "rounds.prompts.count: missing"),
        ({"count": 4}, "rounds.count: input should be less than or equal to 3, not 4"),
        ({"stopping_judge": {"kind": "implicit"}}, "rounds: stopping_judge is the judge that makes the pairs; choose"),
        ({"select": {"by": "random", "budget": None}}, "rounds.select: by 'random' needs a budget"),
        ({"select": {"by": "all", "budget": 3}}, "rounds.select: by 'all' does not use budget"),
        ({"judge": [IMPLICIT]}, "rounds.judge: list should have at least 2 items"),
        (
            {"judge": [IMPLICIT, IMPLICIT]},
            "rounds: judge.1 is the same judge as judge.0, and would vote twice; remove it",
        ),
        ({"judge": [BRIEF, IMPLICIT], "stopping_judge": IMPLICIT}, "rounds: stopping_judge is the judge that makes"),
        ({"judge": [IMPLICIT, {"kind": "verify", "checks": []}]}, "rounds.judge.1.checks: list should have at least 1"),
        ({"judge": {"kind": "implict"}}, "rounds.judge: input tag 'implict' found using 'kind' does not match any"),
        ({"overrides": {"2": {"judge": [IMPLICIT]}}}, "rounds: overrides.2.judge: List should have at least 2"),
        (
            {"select": {"by": "disagreement", "budget": 3}},
            "rounds: select.by 'disagreement' is between several judges who are no people; list two in judge",
        ),
        ({"select": {"by": "uncertainty", "budget": None}}, "rounds.select: by 'uncertainty' needs a budget"),
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
    brief = {"kind": "length", "unit": "words", "max": 5}
    program = {"kind": "verify", "checks": [brief]}
    with pytest.raises(ParamsError, match="stopping_judge is the judge"):  # only called another way
        rounds(judge=program, stopping_judge={"kind": "verify", "checks": [brief | {"name": "brief"}], "timeout": 1.0})
    assert rounds(judge=program, stopping_judge={"kind": "verify", "checks": [brief | {"max": 6}]})


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


# What runs a stage again by its plan


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's code."""
    folder = tmp_path_factory.mktemp("code")
    for name in ("prefdag", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def fingerprints(root: Path, **changes: Any) -> dict[str, str]:
    params = vars(load_params(ROOT / "params.yaml")) | changes
    return {script: fingerprint(script, params, root) for script in SCRIPTS.values()}


def differing(root: Path, before: dict[str, str], **changes: Any) -> set[str]:
    return {script for script, key in fingerprints(root, **changes).items() if key != before[script]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "scripts"),
    [
        ("prefdag/text/scoring/logps.py", set(SCRIPTS.values())),
        ("prefdag/rounds/pairing.py", {"judge_round"}),
        ("prefdag/rounds/training.py", {"dpo_round"}),
        ("stages/verify.py", {"judge_round", "evaluate_round"}),
        ("prefdag/health/verdict.py", set()),
        ("prefdag/lifecycle/errors.py", set()),
    ],
)
def test_an_edit_changes_the_plans_of_the_stages_that_use_the_module(
    path: str, scripts: set[str], copied: Path
) -> None:
    before = fingerprints(copied)
    with (copied / path).open("a") as file:
        file.write("\nEDITED = True\n")
    imports.cache_clear()
    assert differing(copied, before) == scripts


@pytest.mark.slow
def test_another_parameter_changes_the_plans_of_the_stages_that_take_it(copied: Path) -> None:
    before = fingerprints(copied)
    assert differing(copied, before) == set()
    assert differing(copied, before, beta=0.7) == {"judge_round", "dpo_round", "evaluate_round"}
    assert differing(copied, before, seed=1) == {"dpo_round"}
    assert differing(copied, before, health_text=None) == set()
