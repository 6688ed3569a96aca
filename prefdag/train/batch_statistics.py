"""Batch normalisation on several processes, as one process does it.

Its unit is the micro-batch: it normalises by the mean and variance of the rows of one forward pass, and moves its running
statistics towards them, r <- (1 - m) r + m s. So processes take whole micro-batches, in order, and afterwards compose what
each has made of the running statistics: r is linear in what it was before.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

log = logging.getLogger(__name__)


def normalising(model: nn.Module) -> list[Any]:
    """The modules of `model` that normalise by the statistics of a micro-batch. In eval mode there are none."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]


def warn_of_idle_processes(model: nn.Module, processes: int, batch_size: int, micro_batch_size: int) -> None:
    """Say so if there are more processes than micro-batches in a batch, which processes cannot divide."""
    working = math.ceil(batch_size / micro_batch_size)
    if working < processes and normalising(model):
        log.warning(
            "only %d of %d processes have work: batch normalisation needs whole micro-batches, and a batch of %d rows has %d "
            "of training.micro_batch_size %d",
            *(working, processes, batch_size, working, micro_batch_size),
        )


@contextmanager
def composed(accelerator: Accelerator, model: nn.Module, *, idle: bool) -> Iterator[None]:
    """After the block, running statistics are those of one process that has made the passes of all, in the order of processes.

    Args:
        idle: the passes of this process in the block do not count.
    """
    modules = normalising(model) if accelerator.num_processes > 1 else []
    if not modules:
        yield
        return
    statistics = [tensor for module in modules for tensor in (module.running_mean, module.running_var)]
    before = [tensor.to(torch.float64, copy=True) for tensor in statistics]
    counted = torch.stack([module.num_batches_tracked for module in modules])
    yield
    passes = torch.stack([module.num_batches_tracked for module in modules]) - counted
    of_all = accelerator.gather((passes * (not idle))[None]).double()  # (processes, modules)
    rank = accelerator.process_index
    keep = torch.tensor([1 - module.momentum for module in modules], dtype=torch.float64, device=of_all.device)
    own, later, every = (
        (keep**number).repeat_interleave(2) for number in (of_all[rank], of_all[rank + 1 :].sum(0), of_all.sum(0))
    )
    added = [
        after * (now.double() - kept * old)
        for after, kept, now, old in zip(later, own, statistics, before, strict=True)
    ]
    total = accelerator.reduce(torch.cat(added) * (not idle), reduction="sum").split([len(old) for old in before])
    for tensor, old, all_kept, new in zip(statistics, before, every, total, strict=True):
        tensor.copy_(all_kept * old + new)
    for module, number, made in zip(modules, counted, of_all.sum(0), strict=True):
        module.num_batches_tracked.copy_(number + made)
