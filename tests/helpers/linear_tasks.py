"""Small models and tasks in float64 for tests of the training loop."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tasks import task_of
from tiny_models import training
from torch import Tensor, nn

from prefdag.train.checkpoint import Checkpoints
from prefdag.train.loop import fit
from prefdag.train.task import LossAndMetrics, Task, Tasks


def ignore(step: int, metrics: Mapping[str, float]) -> None:
    pass


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1).double()


def regression(n: int, seed: int = 0) -> Task:
    """Squared errors of `linear`; each row has weight 1, 2 or 3."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, 4, generator=generator, dtype=torch.float64).split([3, 1], dim=1)
    weight = [float(1 + i % 3) for i in range(n)]

    def objective(model: nn.Module, rows: Sequence[int], epoch: int | None) -> LossAndMetrics:
        error = (model(x[list(rows)]) - y[list(rows)])[:, 0]
        return error**2 * torch.tensor([weight[i] for i in rows]), {"error": error.detach()}

    return task_of(objective, weight, [f"row-{i}" for i in range(n)])


def spread(n: int) -> Task:
    """A joint loss of `linear`: squared distances that depend on the mean of the model's outputs over all rows of a step."""
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def forward(model: nn.Module, rows: Sequence[int], epoch: int | None) -> Mapping[str, Tensor]:
        return {"y": model(x[list(rows)])[:, 0], "x": x[list(rows), 0]}

    return Task(
        forward,
        lambda outputs: ((outputs["y"] - outputs["y"].mean() - outputs["x"]) ** 2, {"y": outputs["y"].detach()}),
        [1.0] * n,
        [f"row-{i}" for i in range(n)],
        jointly=True,
    )


class Shaky(nn.Module):
    """A model that validation could disturb: it has dropout, batch statistics, and a frozen part in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1)).double()
        self.frozen = nn.Dropout(0.9).eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.frozen(x))


def trained_with_statistics(n: int, micro_batch_size: int, checkpoints: Path) -> dict[str, Tensor]:
    """The tensors of a model that normalises by the statistics of micro-batches, after three epochs of `n` rows; its losses.

    Batches have 8 rows. Continues from the last checkpoint, one step before the end, if there is one.
    """
    model = Shaky()
    model.body[2] = nn.Identity()  # processes have dropout masks of their own
    history = fit(
        model,
        Tasks(regression(n), regression(13, seed=1)),
        training(batch_size=8, micro_batch_size=micro_batch_size, epochs=3, validate_every=2, checkpoint_every=2),
        seed=3,
        checkpoints=Checkpoints(checkpoints),
        log=ignore,
    )
    losses = torch.tensor([row["loss"] for row in history.train + history.validation])
    return {**model.state_dict(), "losses": losses}
