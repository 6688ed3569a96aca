"""Which rows an optimiser step takes."""

import math
from collections.abc import Sequence

import numpy as np

from prefdag.config import Training


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
