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

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from prefdag.lifecycle.errors import NumericError
from prefdag.train.outputs import map_tensors, tensors
from prefdag.train.random_state import random_state, set_random_state
from prefdag.train.task import Task, split_evenly

Row = dict[str, float]


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

    def passes(self, n_rows: int) -> int:
        """How many forward passes each process makes for a step of `n_rows` rows: a sharded model needs as many of all."""
        return math.ceil(math.ceil(n_rows / self.accelerator.num_processes) / self.micro_batch_size)

    def micro_batches(
        self, rows: Sequence[int], passes: int
    ) -> Iterator[tuple[list[int], AbstractContextManager[Any]]]:
        """The rows of each forward pass, and its context: processes exchange gradients only in the last pass.

        A process with too few rows has passes without any.
        """
        parts = split_evenly(rows, self.micro_batch_size) if rows else []
        parts += [[] for _ in range(passes - len(parts))]
        for number, part in enumerate(parts):
            yield part, self.accelerator.no_sync(self.model) if number < len(parts) - 1 else nullcontext()


def forward_backward(
    prepared: PreparedModel, task: Task, rows: Sequence[int], epoch: int | None, *, where: str, backward: bool
) -> Row:
    """Forward (and backward) over `rows` in micro-batches; the loss and mean metrics over all processes.

    Gradients are those of sum(losses) / sum(weights) over all rows of all processes.

    Raises:
        NumericError: a loss or a metric is not finite. The message starts with `where` and names the rows.
    """
    accelerator = prepared.accelerator
    weight = float(sum(task.weights[i] for i in rows))
    if not backward:
        prepared = replace(prepared, model=prepared.unwrapped)  # for the reason in `forward_backward_jointly`
    mine = list(rows)[accelerator.process_index :: accelerator.num_processes]
    if task.jointly and (len(mine) > prepared.micro_batch_size or accelerator.num_processes > 1):
        values = forward_backward_jointly(prepared, task, rows, mine, epoch, weight, backward=backward)
        mine = gather_object(mine)
        sums = {name: value.sum(0) for name, value in values.items()}
    else:
        parts: list[dict[str, Tensor]] = []
        computed: list[int] = []
        for own, synchronised in prepared.micro_batches(mine, prepared.passes(len(rows))):
            chunk, counts = own or list(rows)[:1], float(bool(own))  # a pass without rows counts for nothing
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
    mine: Sequence[int],
    epoch: int | None,
    weight: float,
    *,
    backward: bool,
) -> dict[str, Tensor]:
    """Losses and metrics of all rows of all processes, in the order of `gather_object(mine)`, for a loss of all rows jointly.

    The gradient is exact, in micro-batches (GradCache, arXiv:2101.06983). First the model's outputs for all rows, without
    gradient. Then the gradient of the loss with respect to these outputs. Then a second forward pass per micro-batch, with
    gradient, which carries it back into the model. Both passes draw the same random numbers (dropout).
    """
    accelerator = prepared.accelerator
    before = random_state()
    # Without the wrapper, which exchanges buffers at every forward pass: a pass without gradients needs none.
    bare = prepared.unwrapped
    passes, idle = prepared.passes(len(rows)), list(rows)[:1]
    parts = []
    with torch.no_grad(), accelerator.autocast():
        for part, _ in prepared.micro_batches(mine, passes):
            outputs = task.forward(bare, part or idle, epoch)
            parts += [outputs] if part else []
    own = [map_tensors(lambda *each: torch.cat(each).cpu(), *parts)] if parts else []
    outputs = map_tensors(lambda *each: torch.cat(each).to(accelerator.device), *gather_object(own))
    leaves = [t.requires_grad_() for t in tensors(outputs) if backward and t.is_floating_point()]
    losses, metrics = task.loss(outputs)
    if backward:
        gradients = torch.autograd.grad(losses.sum() / weight, leaves, allow_unused=True)
        first = sum(gather_object([len(mine)])[: accelerator.process_index])
        set_random_state(before)
        # A pass without rows takes part in the backward pass all the same.
        for part, synchronised in prepared.micro_batches(mine, passes):
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
