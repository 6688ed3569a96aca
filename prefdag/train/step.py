"""One pass over some rows: the mean loss and metrics of a task, and its gradients.

Rows go through the model in micro-batches, spread over all processes of `accelerate`. Gradients are those of
sum(losses) / sum(weights) over all rows of all processes, however the rows are split. This also holds for losses that
depend on all rows together (see `forward_backward_jointly`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from prefdag.lifecycle.errors import NumericError
from prefdag.train.batch_statistics import normalising
from prefdag.train.outputs import map_tensors, tensors
from prefdag.train.random_state import random_state, set_random_state
from prefdag.train.task import Task, split_evenly

StepMetrics = dict[str, float]


@dataclass(frozen=True)
class PreparedModel:
    """A model as `accelerator.prepare` returned it, and the number of rows per forward pass."""

    accelerator: Accelerator
    model: nn.Module
    micro_batch_size: int

    @property
    def unwrapped(self) -> nn.Module:
        """The model without the wrapper that synchronises processes."""
        return self.accelerator.unwrap_model(self.model)

    def own_parts(self, rows: Sequence[int]) -> list[list[int]]:
        """The rows of each forward pass of this process for a step of `rows`. A process with too few has passes without any.

        All processes make as many passes, which a sharded model needs. Batch normalisation needs the micro-batches of one
        process instead: each takes some of these.
        """
        rank, world, size = self.accelerator.process_index, self.accelerator.num_processes, self.micro_batch_size
        if normalising(self.model):
            parts = split_evenly(rows, size)
            return [parts[i] for i in np.array_split(range(len(parts)), world)[rank]] or [[]]
        own = list(rows)[rank::world]
        parts = split_evenly(own, size) if own else []
        return parts + [[]] * (math.ceil(math.ceil(len(rows) / world) / size) - len(parts))

    def micro_batches(self, parts: Sequence[list[int]]) -> Iterator[tuple[list[int], AbstractContextManager[Any]]]:
        """The rows of each forward pass, and its context: processes exchange gradients only in the last pass."""
        for number, part in enumerate(parts):
            yield part, self.accelerator.no_sync(self.model) if number < len(parts) - 1 else nullcontext()


def forward_backward(
    prepared: PreparedModel, task: Task, rows: Sequence[int], epoch: int | None, *, where: str, backward: bool
) -> StepMetrics:
    """Forward (and backward) over `rows` in micro-batches; the loss and mean metrics over all processes.

    Gradients are those of sum(losses) / sum(weights) over all rows of all processes.

    Raises:
        NumericError: a loss or a metric is not finite. The message starts with `where` and names the rows.
    """
    accelerator = prepared.accelerator
    weight = float(sum(task.weights[i] for i in rows))
    if not backward:
        prepared = replace(prepared, model=prepared.unwrapped)  # for the reason in `forward_backward_jointly`
    own_parts = prepared.own_parts(rows)
    mine = [row for part in own_parts for row in part]
    if task.jointly and (len(own_parts) > 1 or accelerator.num_processes > 1):
        values = forward_backward_jointly(prepared, task, rows, own_parts, epoch, weight, backward=backward)
        mine = gather_object(mine)
        sums = {name: value.sum(0) for name, value in values.items()}
    else:
        parts: list[dict[str, Tensor]] = []
        computed: list[int] = []
        for own, synchronised in prepared.micro_batches(own_parts):
            # A pass without rows counts for nothing. It gets as many as others: batch normalisation fails on a single one.
            chunk, counts = own or list(rows)[: prepared.micro_batch_size], float(bool(own))
            with synchronised:
                with accelerator.autocast():
                    losses, metrics = task.loss(task.forward(prepared.model, chunk, epoch))
                if backward:
                    # Distributed backward averages over processes, but we want the sum.
                    accelerator.backward(losses.sum() * (counts * accelerator.num_processes / weight))
            found = weighted(losses, metrics)
            parts.append(found if own else {name: torch.zeros_like(value) for name, value in found.items()})
            computed += chunk
        mine = computed
        values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        totals = accelerator.reduce(torch.stack([value.sum(0) for value in values.values()]), reduction="sum")
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
    """Losses and metrics as float64 (rows, 2): value times weight, and the weight, which is 1 unless the metric has one."""
    pairs = {}
    for name, value in {"loss": losses, **metrics}.items():
        value = value.detach().double()
        value, weight = (value, torch.ones_like(value)) if value.ndim == 1 else value.unbind(1)
        pairs[name] = torch.stack([value * weight, weight], dim=1)
    return pairs


def forward_backward_jointly(
    prepared: PreparedModel,
    task: Task,
    rows: Sequence[int],
    own_parts: Sequence[list[int]],
    epoch: int | None,
    weight: float,
    *,
    backward: bool,
) -> dict[str, Tensor]:
    """Losses and metrics of all rows of all processes, in the order of processes, for a loss of all rows jointly.

    The gradient is exact, in micro-batches (GradCache, arXiv:2101.06983). First the model's outputs for all rows, without
    gradient. Then the gradient of the loss with respect to these outputs. Then a second forward pass per micro-batch, with
    gradient, which carries it back into the model. Both passes draw the same random numbers (dropout).
    """
    accelerator = prepared.accelerator
    before = random_state()
    # Without the wrapper, which exchanges buffers at every forward pass: a pass without gradients needs none.
    bare = prepared.unwrapped
    idle = list(rows)[: prepared.micro_batch_size]
    parts = []
    with torch.no_grad(), accelerator.autocast():
        for part, _ in prepared.micro_batches(own_parts):
            outputs = task.forward(bare, part or idle, epoch)
            parts += [outputs] if part else []
    own = [map_tensors(lambda *each: torch.cat(each).cpu(), *parts)] if parts else []
    outputs = map_tensors(lambda *each: torch.cat(each).to(accelerator.device), *gather_object(own))
    leaves = [t.requires_grad_() for t in tensors(outputs) if backward and t.is_floating_point()]
    losses, metrics = task.loss(outputs)
    if backward:
        gradients = torch.autograd.grad(losses.sum() / weight, leaves, allow_unused=True)
        first = sum(gather_object([sum(map(len, own_parts))])[: accelerator.process_index])
        set_random_state(before)
        # A pass without rows takes part in the backward pass all the same.
        for part, synchronised in prepared.micro_batches(own_parts):
            with synchronised:
                with accelerator.autocast():
                    outputs = task.forward(prepared.model, part or idle, epoch)
                again = [t for t in tensors(outputs) if t.is_floating_point()]
                place = slice(first, first + len(part))
                first += len(part)
                products = [
                    (output * (gradient[place] if part else 0.0)).sum()
                    for output, gradient in zip(again, gradients, strict=True)
                    if gradient is not None and output.requires_grad
                ]
                accelerator.backward(torch.stack(products).sum() * accelerator.num_processes)
    return weighted(losses, metrics)


def not_finite(where: str, what: str, value: float, ids: Sequence[str]) -> NumericError:
    """The error for a value that is not finite; it names the rows `ids`."""
    remedy = "look at these rows, or lower the learning rate"
    return NumericError(f"{where}: {what} {value}: not finite; rows {', '.join(ids)}; {remedy}")
