"""Reads what a round has sampled and paired, and refuses what another policy than the expected one has answered."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import read_json, read_table, sha256
from prefdag.text.scoring.rows import read_split

if TYPE_CHECKING:
    from prefdag.rounds.plan import TrainPlan
    from prefdag.text.scoring.formatted import FormattedPairs


ASKED = "prompts.parquet"  # beside the answers: the prompts of a source, as data/validated has those of the pairs


def read_samples(folder: Path, policy: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A round's answers, and how they were made. Raises `DataError` if `policy` is not the model that answered."""
    made: dict[str, Any] = read_json(folder / "made.json")
    check_policy(folder / "made.json", made.get("policy"), policy)
    return read_table(folder / "answers.parquet").to_pandas(), made


def read_pairs(folder: Path, plan: "TrainPlan", number: int, policy: Path) -> "FormattedPairs":
    """The pairs that a round trains on. Raises `DataError` if `policy` is not the model that answered in this round."""
    path = folder / "train.parquet"
    origin = read_table(path, columns=["round", "policy"]).to_pandas()
    new = (origin["round"] == number).to_numpy()
    for found in origin["policy"][new].unique():
        check_policy(path, found, policy)
    pairs = read_split(folder, "train")
    return pairs.take(np.flatnonzero(new)) if plan.train_on == "new" else pairs


def check_policy(path: Path, found: Any, policy: Path) -> None:
    if found != (expected := sha256(policy)):
        raise DataError(
            f"{path}: answers of the policy {str(found)[:16]}, but {policy} is {expected[:16]}; run sample_round again"
        )
