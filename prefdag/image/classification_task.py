"""Cross-entropy on the true classes, as a task of the training loop."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from prefdag.image.classify import class_logps, correct, of_class
from prefdag.image.data import Augmentation, ImagePairs, augmented
from prefdag.train.task import LossAndMetrics, Task


def classification_task(split: ImagePairs, augment: Augmentation) -> Task:
    """Cross-entropy on the true classes: for the warm-up, and for the control that DPO is compared with."""

    def forward(model: nn.Module, rows: Sequence[int], epoch: int | None) -> Mapping[str, Tensor]:
        logps = class_logps(model, augmented(split, rows, epoch, augment))
        labels = split.y_w[list(rows)]
        return {"logps": of_class(logps, labels), "accuracy": correct(logps, labels)}

    def loss(outputs: Mapping[str, Tensor]) -> LossAndMetrics:
        return -outputs["logps"], {"accuracy": outputs["accuracy"]}

    return Task(forward, loss, [1.0] * len(split), split.ids)
