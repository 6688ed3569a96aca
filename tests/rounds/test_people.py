"""People as a judge of rounds: votes worked out by hand, what is refused, and the pairs of a small round."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparing import ANSWERS, ASKED, four

from prefdag.check_params import check_params
from prefdag.config.judges import PeopleJudge
from prefdag.labelling.labels import Label, append, latest, read_labels
from prefdag.lifecycle.errors import DataError, ParamsError
from prefdag.rounds.people import judged_by_people, with_names
from prefdag.rounds.votes import Judged, Vote, merged
from prefdag.runtime.yaml import read_yaml

IDS = [each.id for each in four()]  # of the couples (0, 1), (0, 2), (1, 2) and (3, 4)
ROWS = [[0, 1, 2], [3, 4]]
FOLDER = Path("labels/round-1")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)


def say(annotator: str, *outcomes: str, ids: Any = IDS) -> None:
    for key, outcome in zip(ids, outcomes, strict=False):
        append(FOLDER / f"{annotator}.jsonl", Label(id=key, annotator=annotator, outcome=outcome))  # type: ignore[arg-type]


def asked(labels: int = 1) -> Any:
    return judged_by_people(PeopleJudge(kind="people", labels=labels), ANSWERS, ASKED, FOLDER)


def test_each_person_has_a_vote() -> None:
    say("bob", "second", "tie", "skip", "first")
    say("ann", "first", "first", "first", "second")
    found = asked()
    assert list(found.each) == ["ann", "bob"]
    ann, bob = found.each.values()
    assert ann.votes == {(0, 1): Vote(1), (0, 2): Vote(1), (1, 2): Vote(1), (3, 4): Vote(0)}
    assert [vote.value for vote in bob.votes.values()] == [0, 0.5, pytest.approx(np.nan, nan_ok=True), 1]
    np.testing.assert_array_equal(ann.scores, [1, 0.5, 0, 0, 1])
    np.testing.assert_array_equal(bob.scores, [0.25, 1, 0.5, 1, 0])
    assert found.labels["outcome"].tolist() == [
        *("first", "second", "first", "tie"),
        *("first", "skip", "second", "first"),
    ]
    assert found.labels["annotator"].tolist() == ["ann", "bob"] * 4
    assert found.summary["people"] == 2
    merged_scores, votes = merged(list(found.each.values()), ROWS)
    assert votes[3, 4].value == 0.5  # one vote for each: a tie, which makes no pair
    assert merged_scores[3] == merged_scores[4] == 0.5
    assert 0.5 < votes[0, 2].value < 1


def test_two_of_three_people_are_a_share_of_two_thirds() -> None:
    for name, outcome in (("ann", "first"), ("bob", "first"), ("eve", "second")):
        say(name, outcome, ids=IDS[3:])
    _, votes = merged(list(asked(labels=0).each.values()), ROWS)
    assert votes == {(3, 4): Vote(pytest.approx(2 / 3, abs=1e-6))}


def test_answers_that_no_votes_link_are_not_compared() -> None:
    """0 and 1 are linked, 2 and 3 too, but neither with the others; of two groups of equal size, the first one is kept."""
    nothing = {couple: Vote(np.nan) for couple in ((a, b) for a, b in product(range(5), repeat=2) if a < b)}
    votes = nothing | {(0, 1): Vote(1.0), (2, 3): Vote(0.0)}
    scores, found = merged([Judged(np.full(5, np.nan), votes)], [list(range(5))])
    assert scores[:2].tolist() == [1.0, 0.0]
    assert np.isnan(scores[2:]).all()
    assert list(found) == [(0, 1)]
    linked = votes | {(1, 2): Vote(1.0)}
    assert np.isnan(merged([Judged(np.full(5, np.nan), linked)], [list(range(5))]).scores).tolist() == [False] * 4 + [
        True
    ]


def test_missing_labels_stop_with_one_line() -> None:
    with pytest.raises(DataError) as stopped:
        asked()
    assert str(stopped.value) == (
        "labels/round-1: 4 of 4 comparisons wait for the label of a person; `prefdag label 1` shows them, and "
        "labels/to_label/round-1 has them as files; then run this again"
    )
    assert stopped.value.exit_code == 2
    assert sorted(path.name for path in Path("labels/to_label/round-1").iterdir()) == [
        *("argilla", "comparisons.json", "label_studio.json", "label_studio.xml", "to_label.csv"),
    ]
    say("ann", "first", "tie")
    with pytest.raises(DataError, match="2 of 4 comparisons wait for the label of a person"):
        asked()
    say("ann", "first", "skip", ids=IDS[2:])  # a skip is a label, too
    assert len(asked().labels) == 4
    with pytest.raises(DataError, match="4 of 4 comparisons wait for the label of 2 people"):
        asked(labels=2)


def test_with_0_the_labels_that_there_are_suffice() -> None:
    with pytest.raises(DataError, match="4 of 4 comparisons wait for the label of a person"):
        asked(labels=0)
    say("ann", "second")
    assert asked(labels=0).each["ann"].votes[0, 1] == Vote(0)


def test_equal_answers_ask_nobody() -> None:
    """There is nothing to wait for, and no answer has a score, so no pair is made."""
    same = ANSWERS.assign(text="same")
    found = judged_by_people(PeopleJudge(kind="people"), same, ASKED, FOLDER)
    assert len(found.labels) == 0
    assert found.summary["comparisons"] == 0
    assert np.isnan(merged(list(found.each.values()), ROWS).scores).all()


def test_labels_of_other_answers_do_not_count(caplog: pytest.LogCaptureFixture) -> None:
    say("ann", *["first"] * 4, ids=["other", *IDS[1:]])
    with pytest.raises(
        DataError, match="1 of 4 comparisons wait for the label of a person; 1 labels there are of other"
    ):
        asked()
    say("ann", "first")
    assert "other" not in set(asked().labels["id"])
    assert "labels/round-1: 1 labels are of other answers than this round asks about, and are not used" in caplog.text
    assert len(latest(read_labels(FOLDER))) == 5


def test_a_pair_names_the_people() -> None:
    people, other = {"kind": "people", "labels": 1}, {"kind": "implicit"}
    assert with_names(people, ["ann"]) == {**people, "people": ["ann"]}
    assert with_names([other, people], ["ann", "bob"]) == [other, {**people, "people": ["ann", "bob"]}]
    assert with_names(other, []) == other


# params.yaml


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("judge_text", "judge", {"kind": "people"}, "judge_text.judge.*people"),
        ("rounds", "stopping_judge", {"kind": "people"}, "rounds.stopping_judge.*people"),
        ("rounds", "judge", {"kind": "people", "labels": -1}, "rounds.judge.labels: .*greater than or equal to 0"),
        (
            "rounds",
            "judge",
            [{"kind": "people"}, {"kind": "people", "labels": 2}],
            "judge.1 is the same judge as judge.0",
        ),
    ],
)
def test_what_people_cannot_be_is_refused(section: str, key: str, value: Any, message: str, root: Path) -> None:
    tree = read_yaml(root / "params.yaml")
    tree[section][key] = value
    with pytest.raises(ParamsError, match=message) as refused:
        check_params(tree, Path("params.yaml"))
    assert len(str(refused.value)) < 200


def test_people_do_not_disagree_before_they_are_asked(root: Path) -> None:
    tree = read_yaml(root / "params.yaml")
    check = {"kind": "verify", "checks": [{"kind": "json"}]}
    tree["rounds"] |= {"judge": [{"kind": "people"}, check], "select": {"by": "disagreement", "budget": 3}}
    with pytest.raises(ParamsError, match=r"select.by 'disagreement' is between several judges who are no people"):
        check_params(tree, Path("params.yaml"))
    tree["rounds"]["judge"].append({"kind": "implicit"})
    assert json.dumps(check_params(tree, Path("params.yaml")).rounds.overrides) == "{}"
