"""Shares batches out over the processes of a stage. Batches stay whole, so results do not depend on the number of processes."""

from collections.abc import Callable, Sequence, Sized
from typing import TypeVar

import torch.distributed as dist

from prefdag.distributed.process import process
from prefdag.lifecycle.progress import progress

B = TypeVar("B", bound=Sized)
R = TypeVar("R")


def shared_out(
    batches: Sequence[B], compute: Callable[[B], R], unit: str, name: str, *, done: int = 0, total: int | None = None
) -> list[R]:
    """`compute` of every batch, in order, with a progress bar. Each process computes its share and gets all results.

    Args:
        compute: gives a result that can be pickled, with its tensors on the CPU.
        unit: what a batch has several of, for the bar.
        name: of the bar.
        done: how many units precede these in the bar.
        total: the units of the whole bar; None: these.
    """
    here = process()
    rank, world = here.process_index, here.num_processes
    own = []
    with progress(total or sum(map(len, batches)), unit, name, initial=done, disable=rank > 0) as bar:
        for first in range(0, len(batches), world):
            last = first + rank >= len(batches)
            result = compute(batches[first if last else first + rank])  # a sharded model needs every process
            own += [] if last else [result]
            bar.update(sum(map(len, batches[first : first + world])))
    if world == 1:
        return own
    of_all: list[list[R]] = [[] for _ in range(world)]
    dist.all_gather_object(of_all, own)
    return [of_all[i % world][i // world] for i in range(len(batches))]
