"""The one training loop: SFT, warm-up and DPO, of language models and image classifiers.

What is optimised is a `Task`: rows, their weights, and an objective that turns some of the rows into losses. The loss of a
step is sum(losses) / sum(weights) over all its rows, so that it does not depend on how the rows are cut into forward passes
or spread over processes. `accelerate` runs the loop on whatever `accelerate launch` or torchrun provides.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, gather_object
from torch import Tensor, nn

from prefdag.config import Training
from prefdag.dpo.checkpoint import Checkpoints, TrainState
from prefdag.errors import NumericError, ParamsError
from prefdag.process import process
from prefdag.progress import progress

Row = dict[str, float]


# The losses of some rows, (rows,), with gradient, summed over a row's tokens where weights count tokens; and their metrics,
# each (rows,), without gradient, logged as the mean over rows.
Outcome = tuple[Tensor, Mapping[str, Tensor]]

# From the model, row numbers and the epoch (None in validation: no augmentation) to their outcome.
Objective = Callable[[nn.Module, Sequence[int], int | None], Outcome]


@dataclass(frozen=True)
class Task:
    """Rows to learn from or to validate on."""

    objective: Objective
    weights: Sequence[float]  # (rows,): 1 a row, or its number of tokens for a mean over tokens
    ids: Sequence[str]  # (rows,): how an error names a row


@dataclass(frozen=True)
class History:
    """What was measured: a row an optimiser step, taken before its update, and a row a validation."""

    train: list[Row]
    validation: list[Row]


def fit(
    model: nn.Module,
    train: Task,
    validation: Task,
    config: Training,
    *,
    seed: int,
    checkpoints: Checkpoints,
    log: Callable[[int, Mapping[str, float]], None],
    check_start: Callable[[Mapping[str, float]], None] = lambda metrics: None,
) -> History:
    """Optimise the parameters of `model` that require a gradient, in place, in the mode (train or eval) that it is in.

    Continues from the newest checkpoint, to the same bits as without the interruption.

    Args:
        seed: of the data order, and of whatever the model draws (dropout).
        log: called with a step and its metrics, on the main process.
        check_start: called with the metrics of step 0; raises where the start is wrong.

    Raises:
        NumericError: a loss or a gradient is not finite; the last checkpoint is untouched.
        ParamsError: the batch does not divide over the processes.
    """
    process()
    accelerator = Accelerator(
        mixed_precision={"float32": "no", "bfloat16": "bf16"}[config.precision],
        # Said here, or the launcher's own setting would scale the loss: the batch is params.yaml's alone.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )
    if config.batch_size % accelerator.num_processes:
        raise ParamsError(
            f"params.yaml: training.batch_size: {config.batch_size} rows over {accelerator.num_processes} "
            "processes; choose a multiple"
        )
    torch.manual_seed(seed)
    steps = plan(len(train.weights), config, seed)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, config.learning_rate, weight_decay=config.weight_decay, fused=True)
    state = TrainState(model, optimizer)
    history = History([], [])
    start = checkpoints.restore(state, history.train, history.validation)
    model, optimizer = accelerator.prepare(model, optimizer)

    def validate(step: int) -> None:
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        with torch.no_grad():
            rows = range(len(validation.weights))
            metrics = run(
                accelerator,
                model,
                validation,
                rows,
                None,
                config,
                where=f"validation before step {step}",
                backward=False,
            )
        for module, mode in modes:  # one by one: an adapter may train with dropout inside a model in eval mode
            module.training = mode
        history.validation.append({"step": step, **metrics})
        if accelerator.is_main_process:
            log(step, {f"val/{name}": value for name, value in metrics.items()})

    bar = progress(len(steps), "step", initial=start, disable=not accelerator.is_main_process)
    for step in range(start, len(steps)):
        epoch, rows = steps[step]
        if step % config.validate_every == 0:
            validate(step)
        rate = learning_rate(step, len(steps), config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        metrics = run(accelerator, model, train, rows, epoch, config, where=f"step {step}", backward=True)
        if step == 0:
            check_start(metrics)
        norm = float(accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm) or 0.0)
        if not math.isfinite(norm):
            raise not_finite(f"step {step}", "gradient norm", norm, [train.ids[i] for i in rows])
        optimizer.step()
        optimizer.zero_grad()
        history.train.append({"step": step, "epoch": epoch, "learning_rate": rate, "grad_norm": norm, **metrics})
        bar.set_postfix_str(f"loss {metrics['loss']:.4f}", refresh=False)
        bar.update()
        if accelerator.is_main_process:
            log(step, {"learning_rate": rate, "grad_norm": norm, **metrics})
            if (step + 1) % config.checkpoint_every == 0 and step + 1 < len(steps):
                checkpoints.save(step + 1, state, history.train, history.validation)
    if not history.validation or history.validation[-1]["step"] < len(steps):
        validate(len(steps))
    bar.close()
    return history


def run(
    accelerator: Accelerator,
    model: nn.Module,
    task: Task,
    rows: Sequence[int],
    epoch: int | None,
    config: Training,
    *,
    where: str,
    backward: bool,
) -> Row:
    """Forward (and backward) over `rows`, a micro-batch at a time; the loss and mean metrics over all processes.

    Gradients are of sum(losses) / sum(weights) over all rows of all processes.

    Raises:
        NumericError: a loss or a metric is not finite; it starts with `where` and names the rows.
    """
    total_weight = float(sum(task.weights[i] for i in rows))
    mine = list(rows)[accelerator.process_index :: accelerator.num_processes]
    counts = float(bool(mine))  # every process takes part in every step; one without rows with a loss of zero
    mine = mine or list(rows)[:1]
    chunks = evenly(mine, config.micro_batch_size)
    outcomes: list[dict[str, Tensor]] = []
    for number, chunk in enumerate(chunks):
        with accelerator.no_sync(model) if number < len(chunks) - 1 else nullcontext():
            with accelerator.autocast():
                losses, metrics = task.objective(model, chunk, epoch)
            if backward:
                # Distributed backward averages over processes; the sum is wanted.
                accelerator.backward(losses.sum() * (counts * accelerator.num_processes / total_weight))
        outcomes.append({"loss": losses.detach().double(), **metrics})
    values = {name: torch.cat([outcome[name].double() for outcome in outcomes]) for name in outcomes[0]}
    sums = torch.stack([counts * value.sum() for value in values.values()])
    totals = dict(zip(values, accelerator.reduce(sums, reduction="sum").tolist(), strict=True))
    for name, total in totals.items():
        if not math.isfinite(total):
            bad = [
                task.ids[row]
                for row, value in zip(mine, values[name].tolist(), strict=True)
                if not math.isfinite(value)
            ]
            raise not_finite(where, name, total, gather_object(bad))
    return {name: total / (total_weight if name == "loss" else len(rows)) for name, total in totals.items()}


def not_finite(where: str, what: str, value: float, ids: Sequence[str]) -> NumericError:
    """The error that names the rows, those in `ids`."""
    return NumericError(
        f"{where}: {what} {value}: not finite; rows {', '.join(ids)}; look at these rows, or lower the learning rate"
    )


def evenly(rows: Sequence[int] | np.ndarray, size: int) -> list[list[int]]:
    """`rows` in their order in as few parts of at most `size` as there can be, whose lengths differ by one at most.

    The rest of a division is no batch of its own: batch normalisation would get the statistics of a row or two from it.
    """
    return [part.tolist() for part in np.array_split(np.asarray(rows), math.ceil(len(rows) / size))]


def plan(n_rows: int, config: Training, seed: int) -> list[tuple[int, list[int]]]:
    """The epoch and rows of every step: a pure function of seed and epoch."""
    steps = []
    for epoch in range(config.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(n_rows)
        steps += [(epoch, rows) for rows in evenly(order, config.batch_size)]
    return steps


def learning_rate(step: int, total: int, config: Training) -> float:
    """The rate of a step: linear warm-up to `config.learning_rate`, then constant, linear to 0 or half a cosine to 0."""
    warmup = math.ceil(config.warmup_fraction * total)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    shape = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
    return config.learning_rate * shape[config.schedule]
