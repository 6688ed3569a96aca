"""The one training loop: SFT, warm-up and DPO, of language models and image classifiers.

The loop optimises a `Task`: rows with weights, the model's outputs for some of them, and the losses of these outputs. The
loss of a step is sum(losses) / sum(weights) over all its rows. It does not depend on how the rows are split into forward
passes or spread over processes; this also holds for a loss of all rows jointly (`Task.jointly`). `accelerate` runs the loop
on whatever `accelerate launch` or torchrun provides.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, GradientAccumulationPlugin
from torch import nn

from prefdag.distributed import sharding
from prefdag.distributed.process import process
from prefdag.lifecycle.errors import ParamsError
from prefdag.lifecycle.interruption import Interrupted, interruptible, interruptible_together
from prefdag.lifecycle.progress import progress
from prefdag.train import eight_bit, movement
from prefdag.train.batch_statistics import composed, warn_of_idle_processes
from prefdag.train.checkpoint import Checkpoints, TrainState
from prefdag.train.optimizer import batch_order, learning_rate, make_optimizer
from prefdag.train.random_state import seed_step
from prefdag.train.step import PreparedModel, StepMetrics, forward_backward, not_finite

if TYPE_CHECKING:
    from prefdag.config.training import Training
    from prefdag.dpo.hook import StepHook
    from prefdag.train.task import Tasks


@dataclass(frozen=True)
class History:
    """Metrics: one row per optimiser step, taken before its update, and one row per validation, if any."""

    train: list[StepMetrics]
    validation: list[StepMetrics]


def fit(
    model: nn.Module,
    tasks: "Tasks",
    config: "Training",
    *,
    seed: int,
    checkpoints: Checkpoints,
    log: Callable[[int, Mapping[str, float]], None],
    hooks: Sequence["StepHook"] = (),
) -> History:
    """Optimise the parameters of `model` that require a gradient, in place. The model stays in its mode, train or eval.

    Continues from the newest checkpoint; the result is bit for bit that of an uninterrupted run. Ctrl-C and SIGTERM stop it
    after the current step, with a checkpoint.

    Args:
        seed: for the data order and for the model's random numbers (dropout).
        log: called with a step and its metrics, on the main process.

    Raises:
        Interrupted: Ctrl-C or SIGTERM.
        NumericError: a loss or a gradient is not finite; the last checkpoint is untouched.
        ParamsError: the batch size is not a multiple of the number of processes.
    """
    process()
    if config.optimizer == "adamw_8bit":
        eight_bit.check_installed()
    sharded = sharding.is_sharded(model)
    accelerator = Accelerator(
        mixed_precision={"float32": "no", "bfloat16": "bf16"}[config.precision],
        # Set here, or the launcher's own setting would scale the loss: params.yaml alone defines the batch.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        # Autocast would keep a copy in bfloat16 of every gathered weight until the forward pass ends.
        kwargs_handlers=[AutocastKwargs(cache_enabled=not sharded)],
    )
    if config.batch_size % accelerator.num_processes:
        raise ParamsError(
            f"params.yaml: training.batch_size: {config.batch_size} rows over {accelerator.num_processes} "
            "processes; choose a multiple"
        )
    if accelerator.is_main_process:
        warn_of_idle_processes(model, accelerator.num_processes, config.batch_size, config.micro_batch_size)
    train, validation = tasks
    steps = batch_order(len(train.weights), config, seed)
    sharding.reshard(model)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(list(trainable.values()), config)
    held = {id(p) for p in trainable.values()}
    hook_state = {f"{i}/{name}": t for i, hook in enumerate(hooks) for name, t in hook.state().items()}
    state = TrainState(model, optimizer, hook_state)
    history = History([], [])
    start = checkpoints.restore(state, history.train, history.validation)
    if not sharded:
        # The optimiser's state is where the weights are; accelerate would give it their dtype too.
        model, optimizer = accelerator.prepare(model, optimizer, device_placement=[True, False])
    prepared = PreparedModel(accelerator, model, config.micro_batch_size)
    before = movement.fingerprints(trainable)

    def validate(step: int) -> None:
        if validation is None:
            return
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        with torch.no_grad():
            rows = range(len(validation.weights))
            where = f"validation before step {step}"
            metrics = forward_backward(prepared, validation, rows, None, where=where, backward=False)
        for hook in hooks:
            metrics |= hook.metrics()
        for module, mode in modes:  # one by one: an adapter may train with dropout inside a model in eval mode
            module.training = mode
        history.validation.append({"step": step, **metrics})
        if accelerator.is_main_process:
            log(step, {f"val/{name}": value for name, value in metrics.items()})

    def step_once(step: int) -> None:
        epoch, rows = steps[step]
        rate = learning_rate(step, len(steps), epoch, config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        seed_step(seed, step, accelerator.process_index)
        with composed(accelerator, model, idle=not any(prepared.own_parts(rows))):
            metrics = forward_backward(prepared, train, rows, epoch, where=f"step {step}", backward=True)
        for hook in hooks:
            hook.before_update(step, metrics)
        clipped = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        norm = float(sharding.whole(torch.as_tensor(clipped)))
        if not math.isfinite(norm):
            raise not_finite(f"step {step}", "gradient norm", norm, [train.ids[i] for i in rows])
        if held != {id(p) for p in model.parameters() if p.requires_grad}:
            raise RuntimeError("the optimiser has other parameters than the model")  # these would never be trained
        optimizer.step()
        optimizer.zero_grad()
        for hook in hooks:
            hook.after_step(metrics, epoch_ends=step + 1 == len(steps) or steps[step + 1][0] > epoch)
        history.train.append({"step": step, "epoch": epoch, "learning_rate": rate, "grad_norm": norm, **metrics})
        bar.set_postfix_str(f"loss {metrics['loss']:.4f}", refresh=False)
        bar.update()
        if accelerator.is_main_process:
            log(step, {"learning_rate": rate, "grad_norm": norm, **metrics})

    def save(step: int) -> None:
        sharding.reshard(model)
        tensors = state.tensors()
        if accelerator.is_main_process:
            checkpoints.save(step, tensors, history.train, history.validation)
        accelerator.wait_for_everyone()  # a process that ends early would have the launcher end the one that saves

    def any_rank(received: bool) -> bool:
        flag = torch.tensor(float(received), device=accelerator.device)
        return bool(accelerator.reduce(flag, reduction="sum") > 0)

    def validated(step: int) -> bool:
        return bool(history.validation) and history.validation[-1]["step"] == step

    done, between = start, config.steps_between_validations(len(steps))
    alone = accelerator.num_processes == 1
    # The bar ends with the block, so that an error message starts on a new line.
    with (
        progress(len(steps), "step", initial=start, disable=not accelerator.is_main_process) as bar,
        interruptible() if alone else interruptible_together(any_rank) as whole,
    ):
        try:
            for step in range(start, len(steps)):
                if step % between == 0 and not validated(step):
                    with nullcontext() if alone else whole():  # alone, it ends at once
                        validate(step)
                with whole():
                    step_once(step)
                    done = step + 1
                if done % config.checkpoint_every == 0 and done < len(steps):
                    save(done)
            sharding.reshard(model)
            movement.warn_of_unchanged(accelerator, trainable, before, done - start)
            if not validated(len(steps)):
                with nullcontext() if alone else whole():
                    validate(len(steps))
        except Interrupted:
            if done > start:
                save(done)
            raise
    return history
