"""What the training loop trains on: rows, the model's outputs for some of them, and the losses of those outputs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

# Per-row model outputs by name, each of shape (rows,). Some have a gradient, others are constants.
ModelOutputs = Mapping[str, Tensor]

# Losses of some rows, shape (rows,), with gradient; summed over a row's tokens where a task's weights count tokens.
# Beside them metrics without gradient, logged as means over rows: (rows,), or (rows, 2) with a weight beside each value.
LossAndMetrics = tuple[Tensor, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Task:
    """Rows to learn from or to validate on."""

    score: Callable[
        [nn.Module, Sequence[int], int | None], ModelOutputs
    ]  # of row numbers; epoch None: validation, no augmentation
    loss: Callable[[Any], LossAndMetrics]  # a pure function of what `score` gave
    weights: Sequence[float]  # (rows,): 1 a row, or its number of tokens for a mean over tokens
    ids: Sequence[str]  # (rows,): how an error names a row
    jointly: bool = False  # the loss looks at all rows of a step at once


class Tasks(NamedTuple):
    """What a run trains on, and what it validates on."""

    train: Task
    validation: Task


def split_evenly(rows: Sequence[int] | np.ndarray, size: int) -> list[list[int]]:
    """`rows` in their order in as few parts of at most `size` as there can be, whose lengths differ by one at most.

    The rest of a division is no batch of its own: batch normalisation would get the statistics of a row or two from it.
    """
    return [part.tolist() for part in np.array_split(np.asarray(rows), math.ceil(len(rows) / size))]
