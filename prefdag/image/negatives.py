"""The rejected class of every image in every epoch: a pure function of seed, epoch and row.

Three kinds. `random`: any other class, with equal probability. `hard`: the wrong class that is most probable under the
reference. `confusion`: drawn from the reference's errors on training images of the same class.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from prefdag.image.classify import predict

if TYPE_CHECKING:
    from prefdag.image.data import ImagePairs

Odds = npt.NDArray[
    np.float64
]  # (classes, classes): probability of each y_l given y_w; rows sum to 1, the diagonal is 0

# A random stream of its own, distinct from those of the data order, [seed, epoch], and the augmentation, [seed, epoch, row].
STREAM = 1


class Negatives(Protocol):
    """y_l of some rows of a split, int64 (n,), never y_w. Drawn anew in each epoch; fixed if the epoch is None."""

    def __call__(self, rows: Sequence[int], epoch: int | None) -> Tensor: ...


def negatives(
    kind: Literal["random", "hard", "confusion"],
    splits: Mapping[str, "ImagePairs"],
    reference: nn.Module,
    classes: int,
    seed: int,
) -> dict[str, Negatives]:
    """The negatives of each of `splits`, which must include `train`.

    In validation, `random` uses the y_l of the label pairs, and `confusion` draws once. `hard` never changes.

    Args:
        reference: in eval mode. Its current predictions are used, even if it is updated later. `random` does not run it.
    """
    if kind == "hard":
        return {name: fixed(hardest(predict(reference, s.images), s.y_w)) for name, s in splits.items()}
    if kind == "random":
        return {name: drawn(uniform(classes), s.y_w, seed, validation=s.y_l) for name, s in splits.items()}
    train = splits["train"]
    odds = confusion(predict(reference, train.images), train.y_w)
    return {name: drawn(odds, s.y_w, seed) for name, s in splits.items()}


def fixed(y_l: Tensor) -> Negatives:
    """The same class per row in every epoch: int64 (rows of the split,)."""
    return lambda rows, epoch: y_l[list(rows)]


def drawn(odds: Odds, y_w: Tensor, seed: int, validation: Tensor | None = None) -> Negatives:
    """One class per row, drawn from `odds` in every epoch. In validation: that of `validation`, or drawn once.

    Args:
        y_w, validation: int64 (rows of the split,).
    """
    labels = y_w.cpu().numpy()
    cumulative = odds.cumsum(1)
    cumulative /= cumulative[:, -1:]  # ends at exactly 1

    def y_l(rows: Sequence[int], epoch: int | None) -> Tensor:
        if epoch is None and validation is not None:
            return validation[list(rows)]
        # A row's number is its position in the epoch's random stream, whatever the batch.
        u = np.random.default_rng(_stream(seed, epoch)).random(len(labels))[list(rows)]
        # The first class whose cumulative odds exceed u < 1: never a class with odds 0.
        return torch.from_numpy((cumulative[labels[list(rows)]] <= u[:, None]).sum(1)).to(y_w.device)

    return y_l


def _stream(seed: int, epoch: int | None) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, 0 if epoch is None else epoch + 1], spawn_key=(STREAM,))


def uniform(classes: int) -> Odds:
    """Every other class with equal probability."""
    return (1 - np.eye(classes)) / (classes - 1)


def confusion(logps: Tensor, y_w: Tensor) -> Odds:
    """The mean probability of each wrong class over the images of a true class, scaled to sum to 1.

    A class without images, or one whose wrong classes all have probability 0 in float64, has uniform odds.

    Args:
        logps: float32 (n, classes), in nats.
        y_w: int64 (n,).
    """
    classes = logps.shape[1]
    sums = np.zeros((classes, classes))
    np.add.at(sums, y_w.cpu().numpy(), logps.double().exp().cpu().numpy())
    np.fill_diagonal(sums, 0)
    totals = sums.sum(1, keepdims=True)  # the number of images of a class cancels
    return np.where(totals > 0, sums / np.where(totals > 0, totals, 1), uniform(classes))


def hardest(logps: Tensor, y_w: Tensor) -> Tensor:
    """The most probable class other than y_w: (n, classes) and int64 (n,) -> int64 (n,)."""
    return logps.scatter(1, y_w[:, None], -torch.inf).argmax(1)
