"""One core for two tracks: a classifier of K classes equals a language model that answers with one of K tokens."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tasks import preference_of
from torch import Tensor, nn

from prefdag.dpo.losses import LOSSES
from prefdag.dpo.pair_batch import PairBatch
from prefdag.image.classify import class_logps
from prefdag.image.classify import pair_batch as batch_of_classes
from prefdag.image.data import normalise
from prefdag.text.dpo_batch import pair_batch as batch_of_texts
from prefdag.text.scoring.logps import Pair, pair_logps
from prefdag.text.scoring.states import ForwardMode

N, K = 6, 5
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (N, 1, 4, 4), dtype=torch.uint8, generator=GENERATOR)
Y_W = torch.tensor([0, 1, 2, 3, 4, 0])
Y_L = torch.tensor([1, 2, 3, 4, 0, 3])


class Classifier(nn.Module):
    """A linear layer on pixels."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.head = nn.Linear(16, K)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1))


class OneToken(nn.Module):
    """A language model that answers with one of K tokens. The prompt is a single token, the number of an image."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.prefdag_forward_mode = ForwardMode(packed=True, headless=False)

    def forward(self, input_ids: Tensor, logits_to_keep: Tensor, **_: Any) -> SimpleNamespace:
        prompts = input_ids[0, logits_to_keep]
        return SimpleNamespace(logits=self.classifier(normalise(IMAGES)[prompts])[None])


def results(batch: PairBatch, preference: Any, policy: Classifier) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    policy.zero_grad()
    losses, metrics = preference(batch)
    losses.sum().backward()
    gradient = policy.head.weight.grad
    assert gradient is not None
    return losses.detach(), metrics, gradient.clone()


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "sft"])
def test_a_classifier_is_a_language_model_of_one_token(loss: Any) -> None:
    """The same losses, metrics and gradients. The KL is exact for classes and an estimate for texts; here both get the same."""
    policy, reference = Classifier(0), Classifier(1)
    preference = preference_of(loss, 0.7)
    with torch.no_grad():
        ref_logps = class_logps(reference, IMAGES)
        pairs = [Pair([i], [int(w)], [int(y)]) for i, (w, y) in enumerate(zip(Y_W, Y_L, strict=True))]
        under_reference = pair_logps(OneToken(reference), pairs)
    classes = batch_of_classes(class_logps(policy, IMAGES), ref_logps, Y_W, Y_L)
    assert classes.kl is not None
    classes = classes._replace(exact_kl=classes.kl)  # no gradient: each backward pass has its own graph
    of_classes = results(classes, preference, policy)
    texts = batch_of_texts(pairs, pair_logps(OneToken(policy), pairs, confidence=True), under_reference)
    of_tokens = results(texts._replace(kl=classes.kl, exact_kl=classes.kl), preference, policy)
    torch.testing.assert_close(of_tokens[0], of_classes[0])
    torch.testing.assert_close(of_tokens[1], of_classes[1])
    torch.testing.assert_close(of_tokens[2], of_classes[2])
    assert of_classes[2].abs().max() > 1e-3
