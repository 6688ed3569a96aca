"""A pass over some rows: the mean loss and metrics of a task, and its gradients.

In micro-batches, over all processes of `accelerate`. Gradients are of sum(losses) / sum(weights) over all rows of all
processes, whatever they are cut into; also those of a loss that looks at all rows at once (see `forward_backward_jointly`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from prefdag.runtime.errors import NumericError
from prefdag.train.random_state import random_state, set_random_state
from prefdag.train.task import Task, split_evenly

if TYPE_CHECKING:
    from prefdag.config.training import Training

Row = dict[str, float]


def forward_backward(
    accelerator: Accelerator,
    model: nn.Module,
    task: Task,
    rows: Sequence[int],
    epoch: int | None,
    config: "Training",
    *,
    where: str,
    backward: bool,
) -> Row:
    """Forward (and backward) over `rows`, a micro-batch at a time; the loss and mean metrics over all processes.

    Gradients are of sum(losses) / sum(weights) over all rows of all processes.

    Raises:
        NumericError: a loss or a metric is not finite; it starts with `where` and names the rows.
    """
    weight = float(sum(task.weights[i] for i in rows))
    model = model if backward else accelerator.unwrap_model(model)  # see `forward_backward_jointly`
    mine = list(rows)[accelerator.process_index :: accelerator.num_processes]
    if task.jointly and (len(mine) > config.micro_batch_size or accelerator.num_processes > 1):
        values = forward_backward_jointly(accelerator, model, task, mine, epoch, config, weight, backward=backward)
        mine = gather_object(mine)
        sums = {name: value.sum(0) for name, value in values.items()}
    else:
        counts = float(bool(mine))  # every process takes part in every step; one without rows with a loss of zero
        mine = mine or list(rows)[:1]
        outcomes: list[dict[str, Tensor]] = []
        for chunk, synchronised in chunks(accelerator, model, mine, config):
            with synchronised:
                with accelerator.autocast():
                    losses, metrics = task.loss(task.score(model, chunk, epoch))
                if backward:
                    # Distributed backward averages over processes; the sum is wanted.
                    accelerator.backward(losses.sum() * (counts * accelerator.num_processes / weight))
            outcomes.append(weighted(losses, metrics))
        values = {name: torch.cat([outcome[name] for outcome in outcomes]) for name in outcomes[0]}
        totals = accelerator.reduce(torch.stack([counts * value.sum(0) for value in values.values()]), reduction="sum")
        sums = dict(zip(values, totals, strict=True))
    means = {
        name: float(total[0] / (weight if name == "loss" else total[1])) for name, total in sums.items() if total[1]
    }
    for name, value in means.items():
        if not math.isfinite(value):
            bad = [
                task.ids[row]
                for row, (one, _) in zip(mine, values[name].tolist(), strict=True)
                if not math.isfinite(one)
            ]
            raise not_finite(where, name, value, list(dict.fromkeys(gather_object(bad))))
    return means


def weighted(losses: Tensor, metrics: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Losses and metrics as float64 (rows, 2): a value times its weight, and the weight, 1 where it has none."""
    found = {}
    for name, value in {"loss": losses, **metrics}.items():
        value = value.detach().double()
        value, weight = (value, torch.ones_like(value)) if value.ndim == 1 else value.unbind(1)
        found[name] = torch.stack([value * weight, weight], dim=1)
    return found


def forward_backward_jointly(
    accelerator: Accelerator,
    model: nn.Module,
    task: Task,
    mine: Sequence[int],
    epoch: int | None,
    config: "Training",
    weight: float,
    *,
    backward: bool,
) -> dict[str, Tensor]:
    """The losses and metrics of all rows of all processes, in the order of `gather_object(mine)`, for a loss of all of them.

    The exact gradient in micro-batches (GradCache, arXiv:2101.06983): what the model says is computed first, without
    gradient; then the loss's gradient with respect to that; then, micro-batch by micro-batch once more with gradient, the
    model's. Random numbers (dropout) are the same in both passes.
    """
    before = random_state()
    bare = accelerator.unwrap_model(model)  # the wrapper exchanges buffers at each forward, and not all have as many
    with torch.no_grad(), accelerator.autocast():
        parts = [task.score(bare, part, epoch) for part in split_evenly(mine, config.micro_batch_size)] if mine else []
    own = [{name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}] if parts else []
    everyone = gather_object(own)
    said = {name: torch.cat([one[name] for one in everyone]).to(accelerator.device) for name in everyone[0]}
    leaves = {name: t.requires_grad_() for name, t in said.items() if backward and t.is_floating_point()}
    losses, metrics = task.loss(said)
    if backward:
        gradients = torch.autograd.grad(losses.sum() / weight, list(leaves.values()), allow_unused=True)
        first = sum(gather_object([len(mine)])[: accelerator.process_index])
        set_random_state(before)
        # A process without rows takes part in the backward pass all the same.
        for part, synchronised in chunks(accelerator, model, mine or [0], config):
            with synchronised:
                with accelerator.autocast():
                    again = task.score(model, part, epoch)
                place = slice(first, first + len(part))
                first += len(part)
                pieces = [
                    (again[name] * (gradient[place] if mine else 0.0)).sum()
                    for name, gradient in zip(leaves, gradients, strict=True)
                    if gradient is not None and again[name].requires_grad
                ]
                accelerator.backward(torch.stack(pieces).sum() * accelerator.num_processes)
    return weighted(losses, metrics)


def chunks(
    accelerator: Accelerator, model: nn.Module, rows: Sequence[int], config: "Training"
) -> Iterator[tuple[list[int], AbstractContextManager[Any]]]:
    """The rows of each forward pass, and the context to run it in: gradients are exchanged in the last one alone."""
    parts = split_evenly(rows, config.micro_batch_size)
    for number, part in enumerate(parts):
        yield part, accelerator.no_sync(model) if number < len(parts) - 1 else nullcontext()


def not_finite(where: str, what: str, value: float, ids: Sequence[str]) -> NumericError:
    """The error that names the rows, those in `ids`."""
    remedy = "look at these rows, or lower the learning rate"
    return NumericError(f"{where}: {what} {value}: not finite; rows {', '.join(ids)}; {remedy}")
