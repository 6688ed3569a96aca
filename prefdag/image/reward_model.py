"""A linear reward model on a classifier's features, r(x, y) = w_y . f(x) + b_y, trained on label pairs (Bradley-Terry)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefdag.image.data import ImagePairs, normalise
from prefdag.train.task import split_evenly

BATCH = 250  # images per forward pass
STEPS = 500  # of L-BFGS, at most; the objective is convex


class LinearReward(NamedTuple):
    """Weights (classes, d) and biases (classes,), float64."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor, classes: Tensor) -> Tensor:
        """Rewards of one class per image: (n, d) and int64 (n,) -> (n,)."""
        return (features * self.weight[classes]).sum(1) + self.bias[classes]


@torch.no_grad()
def features(classifier: nn.Module, images: Tensor) -> Tensor:
    """What the last layer of a classifier in eval mode gets, (n, d), float64: `classifier` loses that layer."""
    head: nn.Sequential = classifier.fc  # type: ignore[assignment]
    head[-1] = nn.Identity()
    sizes = [len(rows) for rows in split_evenly(range(len(images)), BATCH)]
    return torch.cat([classifier(normalise(part)).double() for part in images.split(sizes)])


def fit(x: Tensor, pairs: ImagePairs, classes: int, l2: float) -> LinearReward:
    """The minimum of `objective`, from zero, by L-BFGS: the same bytes every time.

    Args:
        x: the features of the pairs' images, float64 (n, d).
    """
    model = LinearReward(x.new_zeros(classes, x.shape[1]), x.new_zeros(classes))
    for tensor in model:
        tensor.requires_grad_(True)
    optimizer = torch.optim.LBFGS(list(model), max_iter=STEPS, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(model, x, pairs, l2)
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)
    return LinearReward(*(tensor.detach() for tensor in model))


def objective(model: LinearReward, x: Tensor, pairs: ImagePairs, l2: float) -> Tensor:
    """The mean of -log sigmoid(r(x, y_w) - r(x, y_l)), plus l2 / 2 times the sum of squares of the weights."""
    margin = model(x, pairs.y_w) - model(x, pairs.y_l)
    return F.softplus(-margin).mean() + l2 / 2 * (model.weight**2).sum()
