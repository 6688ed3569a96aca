"""What the training loop trains on: rows, the model's outputs for some of them, and the losses of those outputs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor, nn

if TYPE_CHECKING:
    from prefdag.train.outputs import ModelOutputs

# Losses of some rows, shape (rows,), with gradient; summed over a row's tokens where a task's weights count tokens.
# Metrics without gradient, logged as means over rows: (rows,), or (rows, 2) with a weight beside each value.
LossAndMetrics = tuple[Tensor, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Task:
    """Rows to train or validate on."""

    # Takes a model, row numbers, and the epoch: None in validation, where nothing is augmented.
    forward: Callable[[nn.Module, Sequence[int], int | None], "ModelOutputs"]
    loss: Callable[[Any], LossAndMetrics]  # a pure function of the outputs of `forward`
    weights: Sequence[float]  # (rows,): 1 per row, or its number of tokens for a mean over tokens
    ids: Sequence[str]  # (rows,): the row's name in error messages
    jointly: bool = False  # the loss depends on all rows of a step together


class Tasks(NamedTuple):
    """What a run trains on, and what it validates on; None: it does not validate."""

    train: Task
    validation: Task | None


def split_evenly(rows: Sequence[int] | np.ndarray, size: int) -> list[list[int]]:
    """`rows`, in order, in as few parts of at most `size` as possible; part lengths differ by at most one.

    A remainder never becomes a tiny batch of its own: batch normalisation would take its statistics from one or two rows.
    """
    return [part.tolist() for part in np.array_split(np.asarray(rows), math.ceil(len(rows) / size))]
