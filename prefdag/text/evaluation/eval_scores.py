"""What models are asked in evaluation, and what base model and reference say: scored once, for all policies.

asked = ask(questions, tokenizer, format_pairs, positions(Path("models/base")))
logps = score_asked(model, asked, max_tokens=1024, role="base")
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from torch import nn

from prefdag.pairs.eval_sets import EvalRow, spoken
from prefdag.runtime.errors import DataError
from prefdag.text.evaluation import choices
from prefdag.text.evaluation.eval_rows import eval_groups
from prefdag.text.scoring.logps import group_logps
from prefdag.text.scoring.packing import Group

if TYPE_CHECKING:
    from prefdag.config.format_pairs import FormatPairs
    from prefdag.pairs.tokenizer import ChatTokenizer

HELDOUT = "heldout"  # the name under which responses of held-out pairs are asked beside them
Asked = Mapping[str, Sequence[Group]]
Logps = dict[str, np.ndarray]


def ask(
    questions: Mapping[str, Sequence[EvalRow]],
    tokenizer: "ChatTokenizer",
    limits: "FormatPairs",
    positions: int | None,
) -> dict[str, list[Group]]:
    """What is scored of the eval sets, by name: each set of `spoken` with one response a row, each of `choices.TASKS`.

    Args:
        questions: rows of the eval sets.
        positions: how many tokens the model takes, None where it has no bound.

    Raises:
        DataError: a row does not fit the model; it is named.
    """
    sets = {name: eval_groups(rows, tokenizer, limits) for name, rows in spoken(questions).items()}
    tasks = {
        of_choices(name): task.groups(questions[name], tokenizer, positions)
        for name, task in choices.TASKS.items()
        if name in questions
    }
    return {**sets, **tasks}


def of_choices(name: str) -> str:
    """Under which name the given answers of a set stand, beside those that are scored one a row."""
    return f"{name}, choices"


def score_asked(model: nn.Module, asked: Asked, max_tokens: int, role: str) -> Logps:
    """Log-probabilities of the responses, float64, (responses,), in the order of the groups."""
    return {name: group_logps(model, groups, max_tokens, f"{name}, {role}") for name, groups in asked.items()}


def to_frame(logps: Logps) -> pd.DataFrame:
    """A row a response: set, logps."""
    return pd.concat([pd.DataFrame({"set": name, "logps": values}) for name, values in logps.items()])


def read_scores(path: Path, asked: Asked) -> Logps:
    """What `to_frame` made, for what is asked. Raises `DataError` where something else was asked then."""
    found = {name: rows.to_numpy() for name, rows in pd.read_parquet(path).groupby("set", sort=False)["logps"]}
    for name, groups in asked.items():
        n = sum(len(group.responses) for group in groups)
        if len(found.get(name, ())) != n:
            raise DataError(f"{path}: {len(found.get(name, ()))} scores of {name}, not {n}; run ref_evals again")
    return {name: found[name] for name in asked}
