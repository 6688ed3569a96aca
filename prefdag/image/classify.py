"""Class log-probabilities of an image classifier, and learning them from labels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefdag.dpo.trainer import Outcome, Task
from prefdag.image.data import Augmentation, ImagePairs, normalise


def class_logps(model: nn.Module, images: Tensor) -> Tensor:
    """log p(class | image) for uint8 images (n, channels, H, W): (n, classes), float32, in nats."""
    return model(normalise(images)).float().log_softmax(dim=-1)


def view(split: ImagePairs, rows: Sequence[int], epoch: int | None, augment: Augmentation) -> Tensor:
    """The images of some rows as an epoch sees them; as they are where `epoch` is None."""
    images = split.images[list(rows)]
    return images if epoch is None else augment(images, rows, epoch)


def classification(split: ImagePairs, augment: Augmentation) -> Task:
    """Cross-entropy on the true classes: the warm-up, and the control that DPO is compared with."""

    def objective(model: nn.Module, rows: Sequence[int], epoch: int | None) -> Outcome:
        logps = class_logps(model, view(split, rows, epoch, augment))
        labels = split.y_w[list(rows)]
        return F.nll_loss(logps, labels, reduction="none"), {"accuracy": (logps.argmax(1) == labels).float()}

    return Task(objective, [1.0] * len(split), split.ids)


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """`class_logps` of many images, batch by batch: (n, classes), float32."""
    return torch.cat([class_logps(model, part) for part in images.split(batch_size)])
