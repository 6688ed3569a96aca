"""A training stage from start to output: tracked live, resumable, written atomically."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
from torch import nn

from prefdag.distributed.process import process
from prefdag.distributed.sharding import is_sharded, reshard
from prefdag.runtime.artifacts import writing
from prefdag.runtime.running import running_stage
from prefdag.tracking import runs
from prefdag.train.checkpoint import Checkpoints
from prefdag.train.loop import fit

if TYPE_CHECKING:
    from prefdag.config.training import Training
    from prefdag.dpo.hook import StepHook
    from prefdag.train.task import Tasks

NO_STEP = ["step", "loss"]  # the header of an empty table


class Output(NamedTuple):
    """The folder that a training stage writes, and a function that saves the trained model into a folder."""

    folder: Path
    save: Callable[[Path], None]


def train_stage(
    model: nn.Module, tasks: "Tasks", config: "Training", seed: int, output: Output, hooks: Sequence["StepHook"] = ()
) -> None:
    """Run `fit` for the current stage, then write the model, history.csv and validation.csv.

    Checkpoints are keyed by the stage's parameters, inputs and code, and deleted at the end.
    """
    stage = running_stage()
    checkpoints = Checkpoints.of_stage(stage.name, stage.params)
    with runs.stage_run(stage.name, stage.params, checkpoints.folder.name) as run:
        history = fit(model, tasks, config, seed=seed, checkpoints=checkpoints, log=run.log, hooks=hooks)
        reshard(model)
        if not (process().is_main_process or is_sharded(model)):  # a sharded model is gathered from all processes
            return
        with writing(output.folder) as folder:
            folder.mkdir()
            output.save(folder)
            for name, rows in {"history": history.train, "validation": history.validation}.items():
                # Without any step, as when the reference is not trained, the table is only a header.
                table = pd.DataFrame(rows or None, columns=None if rows else NO_STEP)
                table.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
    if process().is_main_process:
        checkpoints.clear()
