"""DPO of an image classifier, as a task of the training loop: the true class preferred to another."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prefdag.image.classify import class_logps, correct, predict, score_pairs
from prefdag.image.data import Augmentation, ImagePairs, augmented
from prefdag.train.task import LossAndMetrics, ModelOutputs, Task

if TYPE_CHECKING:
    from prefdag.config.dpo_image import DpoImage

# The reference's `class_logps` of some images of a split as an epoch sees them, by their row numbers; without gradient.
RefLogps = Callable[[Tensor, Sequence[int]], Tensor]


def dpo_task(
    split: ImagePairs,
    augment: Augmentation,
    y_l: Callable[[Sequence[int], int | None], Tensor],
    ref_logps: RefLogps,
    loss: Callable[[Any], LossAndMetrics],
    *,
    jointly: bool,
) -> Task:
    """DPO: the true class preferred to another, which `y_l` gives for row numbers and epoch (see `negatives.Negatives`).

    Args:
        loss, jointly: a `Preference`, and whether it looks at all rows of a step at once.
    """

    def score(model: nn.Module, rows: Sequence[int], epoch: int | None) -> ModelOutputs:
        images = augmented(split, rows, epoch, augment)
        logps, y_w = class_logps(model, images), split.y_w[list(rows)]
        outputs = score_pairs(logps, ref_logps(images, rows), y_w, y_l(rows, epoch))
        return {**outputs, "accuracy": correct(logps, y_w)}

    def loss_of(outputs: ModelOutputs) -> LossAndMetrics:
        losses, metrics = loss(outputs)
        return losses, {**metrics, "accuracy": outputs["accuracy"]}

    return Task(score, loss_of, [1.0] * len(split), split.ids, jointly)


def reference_logps(reference: nn.Module, images: Tensor, augment: Augmentation, config: "DpoImage") -> RefLogps:
    """What the reference says: computed here once for all `images` of a split, and looked up after that.

    Live, beside the policy, where the reference moves or an epoch sees the images changed.
    """
    if config.reference.update != "none" or augment.changes:
        return torch.no_grad()(lambda views, rows: class_logps(reference, views))
    # As the trainer computes it live: in its precision, and in forward passes of its sizes.
    with torch.autocast(images.device.type, torch.bfloat16, enabled=config.training.precision == "bfloat16"):
        table = predict(reference, images, config.training.micro_batch_size)
    return lambda views, rows: table[list(rows)]
