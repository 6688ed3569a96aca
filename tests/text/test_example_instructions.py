"""The default data: what its README says of it holds for every pair."""

import json
from collections import Counter
from typing import Any

import pytest
from paths import ROOT

from examples.instructions import make
from prefdag.runtime.artifacts import sha256
from prefdag.runtime.yaml import read_yaml
from prefdag.text.evaluation.instructions import found


@pytest.fixture(scope="module")
def pairs() -> list[dict[str, Any]]:
    return [json.loads(line) for line in make.PAIRS.read_text("utf-8").splitlines()]


def test_the_program_tells_chosen_from_rejected(pairs: list[dict[str, Any]]) -> None:
    for pair in pairs:
        chosen, rejected = (
            [each.followed for each in found(pair["prompt"], pair[side])] for side in ("chosen", "rejected")
        )
        assert chosen == [True], pair
        assert rejected == [False], pair


def test_every_pair_has_a_prompt_of_its_split_and_topics_are_in_one_split(pairs: list[dict[str, Any]]) -> None:
    asked = {split: set(make.prompts(split)) for split in make.TOPICS}
    assert {split: len(make.prompts(split)) for split in asked} == {"train": 700, "test": 420}
    assert Counter(pair["split"] for pair in pairs) == {"train": 283, "test": 166}
    assert all(pair["prompt"] in asked[pair["split"]] for pair in pairs)
    train, test = (set(map(str.strip, make.TOPICS[split].split(","))) for split in ("train", "test"))
    assert (len(train), len(test)) == (70, 42)
    assert not train & test


def test_pairs_are_made_of_answers_by_hand() -> None:
    """One pair for a prompt with both kinds of answers; the chosen one is longer, then shorter, as far as there is a choice."""
    short, long, wrong = make.Answer("a", 1, True), make.Answer("b b b", 3, True), make.Answer("c c", 2, False)
    made = list(make.pairs(["p", "q", "r"], [[short, long, wrong], [short], [short, long, wrong]]))
    assert made == [
        {"prompt": "p", "chosen": "b b b", "rejected": "c c"},
        {"prompt": "r", "chosen": "a", "rejected": "c c"},
    ]


def test_its_pin_is_in_params() -> None:
    source = read_yaml(ROOT / "params.yaml")["download_pairs"]["source"]
    assert ROOT / source["path"] == make.PAIRS
    assert source["sha256"] == sha256(make.PAIRS)
