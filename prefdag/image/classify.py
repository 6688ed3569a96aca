"""Class log-probabilities of an image classifier, and what DPO reads off them.

To DPO an image is a prompt, and its class a response of one token, whose vocabulary are the classes.
"""

import torch
from torch import Tensor, nn

from prefdag.image.data import normalise
from prefdag.train.task import split_evenly


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


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """`class_logps` of many images, batch by batch: (n, classes), float32."""
    sizes = [len(rows) for rows in split_evenly(range(len(images)), batch_size)]
    return torch.cat([class_logps(model, part) for part in images.split(sizes)])
