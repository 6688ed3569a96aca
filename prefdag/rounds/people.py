"""People as a judge of rounds: each of them has a vote on two answers. Imports no torch."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from prefdag.labelling.agreement import summary
from prefdag.labelling.comparisons import Comparison, comparisons
from prefdag.labelling.forms import to_label, write_forms
from prefdag.labelling.labels import Label, latest, read_labels
from prefdag.lifecycle.errors import DataError
from prefdag.rounds.votes import Couple, Judged, Vote, by_votes, rows_by_prompt

if TYPE_CHECKING:
    from prefdag.config.judges import PeopleJudge
    from prefdag.pairs.turns import Asked

log = logging.getLogger(__name__)

VOTES = {"first": 1.0, "tie": 0.5, "second": 0.0}  # of a person who skipped: none


class People(NamedTuple):
    """What people said of the answers of a round."""

    each: dict[str, Judged]  # by person
    labels: pd.DataFrame  # the labels that count
    summary: dict[str, Any]  # of `agreement.summary`


def judged_by_people(
    config: "PeopleJudge", answers: pd.DataFrame, dialogues: Mapping[str, "Asked"], folder: Path
) -> People:
    """Read the labels in `folder`, and write what is to be labelled.

    Raises:
        DataError: comparisons have too few labels, or a file has something else than labels.
    """
    asked = comparisons(answers, dialogues)
    write_forms(to_label(folder.name), list(asked.values()))
    counted = latest(read_labels(folder))
    ids = {each.id for each in asked.values()}
    people_of = Counter(key for _, key in counted)
    others = sum(key not in ids for _, key in counted)
    check_complete(config, folder, [people_of[key] for key in ids], others)
    if others:
        log.warning("%s: %d labels are of other answers than this round asks about, and are not used", folder, others)
    names = sorted({name for name, key in counted if key in ids})
    # If all answers to each prompt are equal, nobody is asked, and nobody has no votes.
    each = {name: _votes(name, counted, asked, answers) for name in names or ["nobody"]}
    return People(each, _table(asked, counted, names), summary(counted, ids))


def with_names(judge: Any, names: Iterable[str]) -> Any:
    """A judge as in params.yaml, or a list of them, with the names of the people who labelled, by which scores are ordered."""
    if isinstance(judge, list):
        return [with_names(each, names) for each in judge]
    return judge | {"people": list(names)} if judge["kind"] == "people" else judge


def check_complete(config: "PeopleJudge", folder: Path, people: Sequence[int], others: int) -> None:
    """Raises `DataError` unless each comparison has labels of `config.labels` people; with 0, unless there is any label.

    Args:
        people: how many labelled each comparison.
        others: labels of other answers.
    """
    missing = sum(n < config.labels for n in people) if config.labels else len(people) * (not any(people))
    if not missing:
        return
    known = f"; {others} labels there are of other answers, and do not count" if others else ""
    several = f"{config.labels} people" if config.labels > 1 else "a person"
    raise DataError(
        f"{folder}: {missing} of {len(people)} comparisons wait for the label of {several}{known}; `prefdag label "
        f"{folder.name.rpartition('-')[2]}` shows them, and {os.path.relpath(to_label(folder.name))} has "
        "them as files; then run this again"
    )


def _votes(
    name: str, counted: Mapping[tuple[str, str], Label], asked: Mapping[Couple, Comparison], answers: pd.DataFrame
) -> Judged:
    """A person's votes on all couples of answers to a prompt; NaN where there is none."""
    votes = {couple: Vote(np.nan) for rows in rows_by_prompt(answers) for couple in combinations(rows, 2)}
    for couple, each in asked.items():
        if label := counted.get((name, each.id)):
            votes[couple] = Vote(VOTES.get(label.outcome, np.nan))
    return by_votes(len(answers), votes)


def _table(
    asked: Mapping[Couple, Comparison], counted: Mapping[tuple[str, str], Label], names: Sequence[str]
) -> pd.DataFrame:
    """The labels that count, in the order of the comparisons and of the people's names."""
    columns = ["prompt_id", "id", "first", "second", "annotator", "outcome", "note", "left", "time"]
    rows = []
    for each in asked.values():
        for name in names:
            if label := counted.get((name, each.id)):
                said = (label.outcome, label.note, label.left, label.time)
                rows.append((each.prompt_id, each.id, each.first, each.second, name, *said))
    return pd.DataFrame(rows, columns=columns)
