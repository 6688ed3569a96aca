"""DPO of an image classifier, as a task of the training loop: the true class is preferred to another."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from prefdag.image.classify import class_logps, correct, pair_batch, predict
from prefdag.image.data import Augmentation, ImagePairs, augmented
from prefdag.train.task import LossAndMetrics, Task

if TYPE_CHECKING:
    from prefdag.config.dpo_image import DpoImage
    from prefdag.dpo.pair_batch import PairBatch
    from prefdag.dpo.preference import Preference

# The reference's `class_logps` of some images, augmented for an epoch, and their row numbers; without gradient.
ReferenceLogps = Callable[[Tensor, Sequence[int]], Tensor]


class Outputs(NamedTuple):
    """Policy and reference on some images, and the policy's accuracy, (rows,)."""

    batch: "PairBatch"
    accuracy: Tensor


def dpo_task(
    split: ImagePairs,
    augment: Augmentation,
    y_l: Callable[[Sequence[int], int | None], Tensor],
    ref_logps: ReferenceLogps,
    preference: "Preference",
) -> Task:
    """Training by `preference`. `y_l` returns the rejected classes, by row numbers and epoch (see `negatives.Negatives`)."""

    def forward(model: nn.Module, rows: Sequence[int], epoch: int | None) -> Outputs:
        images = augmented(split, rows, epoch, augment)
        logps, y_w = class_logps(model, images), split.y_w[list(rows)]
        return Outputs(pair_batch(logps, ref_logps(images, rows), y_w, y_l(rows, epoch)), correct(logps, y_w))

    def loss(outputs: Outputs) -> LossAndMetrics:
        losses, metrics = preference(outputs.batch)
        return losses, {**metrics, "accuracy": outputs.accuracy}

    return Task(forward, loss, [1.0] * len(split), split.ids, preference.jointly)


def reference_logps(reference: nn.Module, images: Tensor, augment: Augmentation, config: "DpoImage") -> ReferenceLogps:
    """The reference's log-probabilities: computed once for all `images` of a split, then looked up.

    If the reference is updated or the images are augmented, they are computed in every step instead.
    """
    if config.reference.update != "none" or augment.changes:
        return torch.no_grad()(lambda views, rows: class_logps(reference, views))
    # In the precision and micro-batch size of the trainer, so that cached and live values agree.
    with torch.autocast(images.device.type, torch.bfloat16, enabled=config.training.precision == "bfloat16"):
        table = predict(reference, images, config.training.micro_batch_size)
    return lambda views, rows: table[list(rows)]
