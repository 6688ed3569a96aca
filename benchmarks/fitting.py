"""Trainings of benchmarks: in memory, without checkpoints, and validated before the first step and after the last one alone."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from prefdag.config.training import Training
    from prefdag.dpo.hook import StepHook
    from prefdag.train.loop import History
    from prefdag.train.task import Tasks

NEVER = 10**9  # steps


def unwatched(training: "Training", **changes: Any) -> "Training":
    """The settings with these changes, without checkpoints and validations on the way."""
    return replace(training, **changes, validate_every=NEVER, checkpoint_every=NEVER)


def fitted(
    model: "nn.Module", tasks: "Tasks", training: "Training", seed: int, hooks: Sequence["StepHook"] = ()
) -> "History":
    """Train the model in place. Nothing is logged or kept."""
    from prefdag.train.checkpoint import Checkpoints
    from prefdag.train.loop import fit

    with tempfile.TemporaryDirectory() as empty:
        checkpoints = Checkpoints(Path(empty))
        return fit(model, tasks, training, seed=seed, checkpoints=checkpoints, log=lambda *_: None, hooks=hooks)
