"""A DPO stage: a training stage whose first step is checked against the reference, and whose finished run is examined."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from prefdag.config import DpoImage, DpoText
from prefdag.dpo import health
from prefdag.dpo.passes import Task
from prefdag.dpo.preference import START_TOLERANCE, Preference
from prefdag.dpo.session import train_stage
from prefdag.dpo.trainer import Companion
from prefdag.errors import ParamsError


def train_dpo(
    stage: str,
    params: Mapping[str, Any],
    policy: nn.Module,
    train: Task,
    validation: Task,
    config: DpoText | DpoImage,
    seed: int,
    output: Path,
    save: Callable[[Path], None],
    preference: Preference,
    companions: Sequence[Companion],
    *,
    starts_at_reference: bool = True,
) -> None:
    """`train_stage` for DPO: the first step is checked, and the finished run examined; health.json lies beside the policy.

    Raises:
        ParamsError: the reference is to move, and the loss has none.
        NumericError: the policy does not start at its reference, or the run has a finding that `health.fail_on` names.
    """
    if config.reference.update != "none" and not preference.uses_reference:
        raise ParamsError(
            f"params.yaml: {stage}.reference.update: '{config.reference.update}' moves a reference that the loss does not "
            "use; set it to none"
        )
    tolerance = START_TOLERANCE[config.training.precision]

    def examine(history: pd.DataFrame, validation: pd.DataFrame) -> Mapping[str, Any]:
        verdict = health.examine(
            history, validation, config.health, start_tolerance=tolerance if starts_at_reference else None
        )
        health.fail(verdict, config.health)
        return health.to_json(verdict)

    train_stage(
        stage,
        params,
        policy,
        train,
        validation,
        config.training,
        seed,
        output,
        save,
        companions=[preference, *companions],
        check_start=preference.check_start(tolerance) if starts_at_reference else lambda metrics: None,
        examine=examine,
    )
