"""Helpers for tests of training: tasks, preferences, and stages that run without tracking."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor, nn

from prefdag.config.loss import LossName
from prefdag.config.loss_options import LossOptions
from prefdag.dpo.preference import Preference
from prefdag.train import session
from prefdag.train.checkpoint import Checkpoints
from prefdag.train.loop import History, fit
from prefdag.train.task import LossAndMetrics, Task

Objective = Callable[[nn.Module, Sequence[int], int | None], LossAndMetrics]


def task_of(objective: Objective, weights: Sequence[float], ids: Sequence[str]) -> Task:
    """A task whose losses and metrics come from one function."""

    def forward(model: nn.Module, rows: Sequence[int], epoch: int | None) -> Mapping[str, Tensor]:
        losses, metrics = objective(model, rows, epoch)
        return {"losses": losses, **metrics}

    def loss(outputs: Mapping[str, Tensor]) -> LossAndMetrics:
        return outputs["losses"], {name: value for name, value in outputs.items() if name != "losses"}

    return Task(forward, loss, weights, ids)


def objective_of(task: Task) -> Objective:
    """The function from a model and rows to losses and metrics."""
    return lambda model, rows, epoch: task.loss(task.forward(model, rows, epoch))


NO_OPTIONS = dict.fromkeys(LossOptions.__dataclass_fields__)


def preference_of(
    loss: LossName | Mapping[LossName, float], beta: float = 0.5, constraints: Any = None, **options: Any
) -> Preference:
    """A preference with these options; the others are null."""
    return Preference(loss, beta, LossOptions(**{**NO_OPTIONS, **options}), constraints or {})


def without_tracking(monkeypatch: pytest.MonkeyPatch, checkpoints: Path) -> list[tuple[History, nn.Module]]:
    """Let training stages run without MLflow and dvc.yaml; the list collects each one's history and trained model."""
    results: list[tuple[History, nn.Module]] = []

    @contextmanager
    def stage_run(*_: Any) -> Any:
        yield SimpleNamespace(log=lambda step, metrics: None)

    def fitted(model: nn.Module, *args: Any, **kwargs: Any) -> History:
        results.append((fit(model, *args, **kwargs), model))
        return results[-1][0]

    monkeypatch.setattr(session.runs, "stage_run", stage_run)
    monkeypatch.setattr(session, "fit", fitted)
    monkeypatch.setattr(Checkpoints, "of_stage", classmethod(lambda cls, stage, params: cls(checkpoints)))
    return results


def slow(value: Any) -> Any:
    """A parameter for the slow tests only; the fast ones have another of its kind."""
    return pytest.param(value, marks=pytest.mark.slow)
