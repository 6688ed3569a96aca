"""Log-probabilities of eval rows. Base model and reference are scored once, and the result is kept for all policies.

groups = groups_by_set(questions, tokenizer, limits, positions(Path("models/base")))
logps = compute_logps(model, groups, max_tokens=1024, role="base")
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from torch import nn

from prefdag.lifecycle.errors import DataError
from prefdag.pairs.eval_sets import EvalRow, cross_entropy_sets
from prefdag.runtime.artifacts import read_table
from prefdag.text.evaluation import choices
from prefdag.text.evaluation.eval_rows import eval_groups
from prefdag.text.scoring.logps import group_logps
from prefdag.text.scoring.packing import Group

if TYPE_CHECKING:
    from prefdag.pairs.limits import Limits
    from prefdag.tokenizer.tokenizer import ChatTokenizer

HELDOUT = "heldout"  # the name of the held-out pairs among the sets
GroupsBySet = Mapping[str, Sequence[Group]]
LogpsBySet = dict[str, np.ndarray]


def groups_by_set(
    questions: Mapping[str, Sequence[EvalRow]],
    tokenizer: "ChatTokenizer",
    limits: "Limits",
    positions: int | None,
) -> dict[str, list[Group]]:
    """The groups to score, by set: one response per row of `cross_entropy_sets`, all answers for the sets of `choices.TASKS`.

    Args:
        questions: rows of the eval sets, by name.
        positions: the model's context length in tokens, None if unbounded.

    Raises:
        DataError: a row does not fit the model. The error names the row.
    """
    responses = {name: eval_groups(rows, tokenizer, limits) for name, rows in cross_entropy_sets(questions).items()}
    answers = {
        choices_key(name): task.groups(questions[name], tokenizer, positions)
        for name, task in choices.TASKS.items()
        if name in questions
    }
    return {**responses, **answers}


def choices_key(name: str) -> str:
    """The key of a set's multiple-choice answers. Its rows with one response have the key `name`."""
    return f"{name}, choices"


def compute_logps(model: nn.Module, groups: GroupsBySet, max_tokens: int, role: str) -> LogpsBySet:
    """Log-probabilities of the responses of each set, float64, (responses,), in the order of the groups."""
    return {name: group_logps(model, of_set, max_tokens, f"{name}, {role}") for name, of_set in groups.items()}


def to_frame(logps: LogpsBySet) -> pd.DataFrame:
    """One row per response, with columns set and logps."""
    return pd.concat([pd.DataFrame({"set": name, "logps": values}) for name, values in logps.items()])


def read_logps(path: Path, groups: GroupsBySet) -> LogpsBySet:
    """Read a `to_frame` table for these groups. Raises `DataError` if it was computed for other ones."""
    table = read_table(path, columns=["set", "logps"]).to_pandas()
    logps = {name: rows.to_numpy() for name, rows in table.groupby("set", sort=False)["logps"]}
    for name, of_set in groups.items():
        expected, actual = sum(len(group.responses) for group in of_set), len(logps.get(name, ()))
        if actual != expected:
            raise DataError(f"{path}: {actual} log-probabilities of {name}, expected {expected}; run ref_evals again")
        if not np.isfinite(logps[name]).all():
            raise DataError(f"{path}: a log-probability of {name} is not finite; run ref_evals again")
    return {name: logps[name] for name in groups}
