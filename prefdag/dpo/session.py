"""A training stage from start to artefact: tracked live, resumable, written whole."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from prefdag import tracking
from prefdag.artifacts import writing
from prefdag.config import Training, flatten
from prefdag.dpo.checkpoint import Checkpoints
from prefdag.dpo.trainer import Task, fit
from prefdag.process import process


def train_stage(
    stage: str,
    params: Mapping[str, Any],
    model: nn.Module,
    train: Task,
    validation: Task,
    config: Training,
    seed: int,
    output: Path,
    save: Callable[[Path], None],
    check_start: Callable[[Mapping[str, float]], None] = lambda metrics: None,
) -> None:
    """Run `trainer.fit`, then write the folder `output`: what `save` puts there, history.csv and validation.csv.

    Args:
        params: what the stage reads from params.yaml; part of the key of its checkpoints, and logged.
        save: called with the folder to write the trained model to.
    """
    checkpoints = Checkpoints.of_stage(stage, **params)
    with tracking.stage_run(stage, flatten(params), checkpoints.folder.name) as run:
        history = fit(
            model, train, validation, config, seed=seed, checkpoints=checkpoints, log=run.log, check_start=check_start
        )
        if not process().is_main_process:
            return
        with writing(output) as folder:
            folder.mkdir()
            save(folder)
            pd.DataFrame(history.train).to_csv(folder / "history.csv", index=False, lineterminator="\n")
            pd.DataFrame(history.validation).to_csv(folder / "validation.csv", index=False, lineterminator="\n")
    checkpoints.clear()
