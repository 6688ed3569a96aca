"""A training stage from start to artefact: tracked live, resumable, written whole."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from prefdag import tracking
from prefdag.artifacts import write_json, writing
from prefdag.config import Training, flatten
from prefdag.dpo.checkpoint import Checkpoints
from prefdag.dpo.passes import Task
from prefdag.dpo.trainer import Companion, fit
from prefdag.process import process

NO_STEP = ["step", "loss"]


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
    *,
    companions: Sequence[Companion] = (),
    check_start: Callable[[Mapping[str, float]], None] = lambda metrics: None,
    examine: Callable[[pd.DataFrame, pd.DataFrame], Mapping[str, Any] | None] = lambda history, validation: None,
) -> None:
    """Run `trainer.fit`, then write the folder `output`: what `save` puts there, history.csv and validation.csv.

    Args:
        params: what the stage reads from params.yaml; logged, and but for `health` part of the key of its checkpoints.
        save: called with the folder to write the trained model to.
        examine: of both histories to what is written as health.json; raises where the run must not be taken.
    """
    shaping = {key: value for key, value in flatten(params).items() if ".health." not in key}
    checkpoints = Checkpoints.of_stage(stage, **shaping)
    with tracking.stage_run(stage, flatten(params), checkpoints.folder.name) as run:
        history = fit(
            model,
            train,
            validation,
            config,
            seed=seed,
            checkpoints=checkpoints,
            log=run.log,
            companions=companions,
            check_start=check_start,
        )
        if not process().is_main_process:
            return
        rows = {"history": history.train, "validation": history.validation}
        # Without a step, as where a reference is not trained, a table is its header.
        tables = {name: pd.DataFrame(found or None, columns=None if found else NO_STEP) for name, found in rows.items()}
        verdict = examine(*tables.values())
        with writing(output) as folder:
            folder.mkdir()
            save(folder)
            for name, table in tables.items():
                table.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
            if verdict is not None:
                write_json(folder / "health.json", verdict)
    checkpoints.clear()
