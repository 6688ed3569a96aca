"""Class log-probabilities of an image classifier, what DPO reads off them, and learning them from labels.

To DPO an image is a prompt, and its class a response of one token, whose vocabulary are the classes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prefdag.config import DpoImage
from prefdag.dpo.passes import Outcome, Said, Task
from prefdag.dpo.plan import evenly
from prefdag.image.data import Augmentation, ImagePairs, normalise

# The reference's `class_logps` of some images of a split as an epoch sees them, by their row numbers; without gradient.
RefLogps = Callable[[Tensor, Sequence[int]], Tensor]


def class_logps(model: nn.Module, images: Tensor) -> Tensor:
    """log p(class | image) for uint8 images (n, channels, H, W): (n, classes), float32, in nats."""
    return model(normalise(images)).float().log_softmax(dim=-1)


def of_class(logps: Tensor, classes: Tensor) -> Tensor:
    """log p(class | image) of one class an image: (n, classes) and int64 (n,) -> (n,), in nats."""
    return logps.gather(1, classes[:, None])[:, 0]


def confidence(logps: Tensor, classes: Tensor) -> Tensor:
    """The log-weight of a response in WPO, arXiv:2406.11827, eq. 2: log p(y|x) - log sum_v p(v|x)^2, (n,), in nats.

    Relative to what the policy says on average: zero for the policy that knows nothing, and for the one that is certain
    of `classes`. With gradient where `logps` has one; a weight wants it detached.
    """
    return of_class(logps, classes) - (2 * logps).logsumexp(1)


def kl(policy: Tensor, reference: Tensor) -> Tensor:
    """KL(policy || reference) of the class distributions, exact: (n, classes) each -> (n,), in nats, dtype kept."""
    return (policy.exp() * (policy - reference)).sum(1)


def correct(logps: Tensor, labels: Tensor) -> Tensor:
    """1 where the most probable class is the label, 0 where not: (n, classes) and int64 (n,) -> float32 (n,)."""
    return (logps.argmax(1) == labels).float()


def score_pairs(policy: Tensor, reference: Tensor, y_w: Tensor, y_l: Tensor) -> dict[str, Tensor]:
    """What two classifiers say of pairs of classes, as `preference.Scores`: (n,) each, with the gradient of `policy`.

    A response is one token. The KL is exact, once with gradient and once, as KTO takes it, without; the confidences have none.

    Args:
        policy, reference: class log-probabilities, float32 (n, classes).
        y_w, y_l: int64 (n,).
    """
    frozen, one, exact = policy.detach(), torch.ones_like(policy[:, 0]), kl(policy, reference)
    return {
        "chosen": of_class(policy, y_w),
        "rejected": of_class(policy, y_l),
        "ref_chosen": of_class(reference, y_w),
        "ref_rejected": of_class(reference, y_l),
        "chosen_tokens": one,
        "rejected_tokens": one,
        "chosen_confidence": confidence(frozen, y_w),
        "rejected_confidence": confidence(frozen, y_l),
        "kl": exact.detach(),
        "exact_kl": exact,
    }


def view(split: ImagePairs, rows: Sequence[int], epoch: int | None, augment: Augmentation) -> Tensor:
    """The images of some rows as an epoch sees them; as they are where `epoch` is None."""
    images = split.images[list(rows)]
    return images if epoch is None else augment(images, rows, epoch)


def classification(split: ImagePairs, augment: Augmentation) -> Task:
    """Cross-entropy on the true classes: the warm-up, and the control that DPO is compared with."""

    def score(model: nn.Module, rows: Sequence[int], epoch: int | None) -> Said:
        logps = class_logps(model, view(split, rows, epoch, augment))
        labels = split.y_w[list(rows)]
        return {"logps": of_class(logps, labels), "accuracy": correct(logps, labels)}

    def loss(said: Said) -> Outcome:
        return -said["logps"], {"accuracy": said["accuracy"]}

    return Task(score, loss, [1.0] * len(split), split.ids)


def comparison(
    split: ImagePairs,
    augment: Augmentation,
    y_l: Callable[[Sequence[int], int | None], Tensor],
    ref_logps: RefLogps,
    loss: Callable[[Any], Outcome],
    *,
    jointly: bool,
) -> Task:
    """DPO: the true class preferred to another, which `y_l` gives for row numbers and epoch (see `negatives.Negatives`).

    Args:
        loss, jointly: a `Preference`, and whether it looks at all rows of a step at once.
    """

    def score(model: nn.Module, rows: Sequence[int], epoch: int | None) -> Said:
        images = view(split, rows, epoch, augment)
        logps, y_w = class_logps(model, images), split.y_w[list(rows)]
        said = score_pairs(logps, ref_logps(images, rows), y_w, y_l(rows, epoch))
        return {**said, "accuracy": correct(logps, y_w)}

    def loss_of(said: Said) -> Outcome:
        losses, metrics = loss(said)
        return losses, {**metrics, "accuracy": said["accuracy"]}

    return Task(score, loss_of, [1.0] * len(split), split.ids, jointly)


def reference_logps(reference: nn.Module, images: Tensor, augment: Augmentation, config: DpoImage) -> RefLogps:
    """What the reference says: computed here once for all `images` of a split, and looked up after that.

    Live, beside the policy, where the reference moves or an epoch sees the images changed.
    """
    if config.reference.update != "none" or augment.changes:
        return torch.no_grad()(lambda views, rows: class_logps(reference, views))
    # As the trainer computes it live: in its precision, and in forward passes of its sizes.
    with torch.autocast(images.device.type, torch.bfloat16, enabled=config.training.precision == "bfloat16"):
        table = predict(reference, images, config.training.micro_batch_size)
    return lambda views, rows: table[list(rows)]


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """`class_logps` of many images, batch by batch: (n, classes), float32."""
    sizes = [len(rows) for rows in evenly(range(len(images)), batch_size)]
    return torch.cat([class_logps(model, part) for part in images.split(sizes)])
