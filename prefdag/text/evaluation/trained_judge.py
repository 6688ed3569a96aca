"""Verdicts of the reward model that the pipeline trained."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prefdag.distributed.sharing import shared_out
from prefdag.runtime.artifacts import read_json
from prefdag.text.evaluation.chance import HELDOUT, check_beats_chance
from prefdag.text.evaluation.judge import by_rewards
from prefdag.text.rewards import load, reward


def verdicts(pairs: pd.DataFrame, folder: Path, where: str) -> pd.DataFrame:
    """Verdicts of the reward model in `folder` on `judge.contests`.

    Args:
        where: the judge's key in params.yaml.

    Raises:
        ParamsError: as `check_beats_chance`.
    """
    check_beats_chance(read_json(folder / HELDOUT), where)
    model = load(folder)

    def rewards(rows: Iterable[Mapping[Any, Any]]) -> list[list[float]]:
        return [
            [reward(model, row["prompt_ids"], row[f"ids_{role}"]) for role in ("reference", "policy")] for row in rows
        ]

    each = [[row] for row in pairs.to_dict("records")]
    table = np.concatenate(shared_out(each, rewards, "contest", "reward model"))
    return by_rewards(pairs, table[:, 0], table[:, 1])
