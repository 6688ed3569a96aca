"""Class log-probabilities of an image classifier, and the quantities that DPO takes from them.

For DPO an image is a prompt, and a class is a response of one token; the vocabulary is the set of classes.
"""

import torch
from torch import Tensor, nn

from prefdag.distributed.sharing import shared_out
from prefdag.dpo.pair_batch import PairBatch, Response
from prefdag.image.data import normalise
from prefdag.train.task import split_evenly


def class_logps(model: nn.Module, images: Tensor) -> Tensor:
    """log p(class | image) for uint8 images (n, channels, H, W): (n, classes), float32, in nats."""
    return model(normalise(images)).float().log_softmax(dim=-1)


def of_class(logps: Tensor, classes: Tensor) -> Tensor:
    """log p(class | image) of one class per image: (n, classes) and int64 (n,) -> (n,), in nats."""
    return logps.gather(1, classes[:, None])[:, 0]


def confidence(logps: Tensor, classes: Tensor) -> Tensor:
    """The log-weight of a response in WPO, arXiv:2406.11827, eq. 2: log p(y|x) - log sum_v p(v|x)^2, (n,), in nats.

    Relative to the policy's average: zero for a uniform policy, and for one that is certain of `classes`. Has the gradient of
    `logps`; detach it for a weight.
    """
    return of_class(logps, classes) - (2 * logps).logsumexp(1)


def kl(policy: Tensor, reference: Tensor) -> Tensor:
    """KL(policy || reference) of the class distributions, exact: (n, classes) each -> (n,), in nats, dtype kept."""
    return (policy.exp() * (policy - reference)).sum(1)


def correct(logps: Tensor, labels: Tensor) -> Tensor:
    """1 where the most probable class is the label, else 0: (n, classes) and int64 (n,) -> float32 (n,)."""
    return (logps.argmax(1) == labels).float()


def pair_batch(policy: Tensor, reference: Tensor, y_w: Tensor, y_l: Tensor) -> PairBatch:
    """Pairs of classes under two classifiers: tensors (n,), with the gradient of `policy`.

    Each response is one token. The KL is exact: `exact_kl` with gradient, and `kl`, which KTO takes, without. The confidences
    have no gradient.

    Args:
        policy, reference: class log-probabilities, float32 (n, classes).
        y_w, y_l: int64 (n,).
    """
    frozen, one, exact = policy.detach(), torch.ones_like(policy[:, 0]), kl(policy, reference)
    chosen, rejected = (
        Response(of_class(policy, y), of_class(reference, y), one, confidence=confidence(frozen, y)) for y in (y_w, y_l)
    )
    return PairBatch(chosen, rejected, kl=exact.detach(), exact_kl=exact)


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """`class_logps` of many images, in batches that processes share: (n, classes), float32, on the images' device."""
    sizes = [len(rows) for rows in split_evenly(range(len(images)), batch_size)]
    parts = shared_out(images.split(sizes), lambda part: class_logps(model, part).cpu(), "image", "predictions")
    return torch.cat(parts).to(images.device)
