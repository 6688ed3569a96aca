"""The inputs of DPO on images: the class that is not preferred, the views of an image, the scores of a classifier."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prefdag.config.label_pairs import LabelPairs
from prefdag.dpo.pair_batch import PairBatch, Response
from prefdag.image import negatives
from prefdag.image.classify import confidence, correct, kl, of_class, pair_batch
from prefdag.image.data import Augmentation, ImagePairs
from prefdag.image.label_pairs import label_pairs as pair_labels
from prefdag.train.outputs import map_tensors, tensors

KINDS = ["random", "hard", "confusion"]


class Table(nn.Module):
    """A classifier of one-pixel images: the pixel is a row number in a table of logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[((images[:, 0, 0, 0] + 1) * 127.5).round().long()]


def split_of(y_w: Tensor, y_l: Tensor, first: int = 0) -> ImagePairs:
    """A split of one-pixel images whose pixels count up from `first`."""
    pixels = torch.arange(first, first + len(y_w), dtype=torch.uint8)
    return ImagePairs(pixels.tolist(), pixels[:, None, None, None], y_w, y_l)


def world(classes: int, seed: int = 0, n: int = 60) -> tuple[dict[str, ImagePairs], Table]:
    """Images of random classes in two splits, and a random reference."""
    generator = torch.Generator().manual_seed(seed)
    y_w = torch.randint(classes, (2 * n,), generator=generator)
    y_l = (y_w + torch.randint(1, classes, (2 * n,), generator=generator)) % classes
    reference = Table(3 * torch.randn(2 * n, classes, generator=generator))
    return {"train": split_of(y_w[:n], y_l[:n]), "val": split_of(y_w[n:], y_l[n:], first=n)}, reference


# Negatives


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(KINDS),
    classes=st.integers(2, 6),
    seed=st.integers(0, 2**40),
    epoch=st.none() | st.integers(0, 50),
    name=st.sampled_from(["train", "val"]),
)
def test_y_l_is_another_class(kind: Any, classes: int, seed: int, epoch: int | None, name: str) -> None:
    """The seed project drew y_l from all classes, so one pair in ten preferred a class to itself."""
    splits, reference = world(classes, seed % 7)
    y_l = negatives.negatives(kind, splits, reference, classes, seed)[name](range(60), epoch)
    assert y_l.dtype == torch.int64
    assert y_l.shape == (60,)
    assert (y_l != splits[name].y_w).all()
    assert ((y_l >= 0) & (y_l < classes)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("epoch", [0, 7, None])
def test_y_l_is_a_function_of_seed_epoch_and_row(kind: Any, epoch: int | None) -> None:
    """Not of the batch, of earlier draws, or of global state: the seed project drew anew at every access."""
    splits, reference = world(5)
    first = negatives.negatives(kind, splits, reference, 5, seed=3)
    together = first["train"](range(60), epoch)
    torch.manual_seed(1)
    np.random.seed(1)
    again = negatives.negatives(kind, splits, reference, 5, seed=3)["train"]
    again([5], 9)
    assert torch.equal(again([41, 7, 41], epoch), together[[41, 7, 41]])
    assert torch.equal(again(range(60), epoch), together)


@pytest.mark.parametrize("kind", ["random", "confusion"])
def test_y_l_changes_between_epochs_and_seeds(kind: Any) -> None:
    splits, reference = world(5)
    draw, other = (negatives.negatives(kind, splits, reference, 5, seed)["train"] for seed in (0, 1))
    drawn = [draw(range(60), 0), draw(range(60), 1), draw(range(60), 2), draw(range(60), None), other(range(60), 0)]
    for i, y_l in enumerate(drawn):
        for other_y_l in drawn[:i]:
            assert (y_l != other_y_l).float().mean() > 0.2  # with equal odds, 3/4 of the draws would differ


def test_random_negatives_are_validated_on_the_label_pairs() -> None:
    splits, reference = world(4)
    draw = negatives.negatives("random", splits, reference, 4, seed=0)["val"]
    assert torch.equal(draw([4, 2, 59], None), splits["val"].y_l[[4, 2, 59]])


def test_random_negatives_are_uniform_over_the_other_classes() -> None:
    y_w = torch.full((9000,), 3)
    y_l = negatives.drawn(negatives.uniform(10), y_w, seed=0)(range(9000), 0)
    counts = torch.bincount(y_l, minlength=10)
    assert counts[3] == 0
    # Binomial(9000, 1/9): its mean, and five standard deviations.
    assert (counts[counts > 0] - 9000 / 9).abs().max() < 5 * math.sqrt(9000 * 1 / 9 * 8 / 9)
    assert (counts > 0).sum() == 9


def test_hard_negatives_by_hand() -> None:
    """The true classes are 0, 0 and 2. The reference ranks the classes 0 2 1, 1 0 2 and 2 1 0."""
    logps = torch.tensor([[0.5, 0.1, 0.4], [0.3, 0.6, 0.1], [0.1, 0.2, 0.7]]).log()
    splits = {"train": split_of(torch.tensor([0, 0, 2]), torch.tensor([1, 2, 0]))}
    draw = negatives.negatives("hard", splits, Table(logps), 3, seed=0)["train"]
    for epoch in (None, 0, 1):
        assert draw([0, 1, 2], epoch).tolist() == [2, 1, 1]


def test_confusion_by_hand() -> None:
    """The two images of class 0 have mean probabilities 0.4 and 0.1 of classes 1 and 2. Class 2 has no images."""
    logps = torch.tensor([[0.6, 0.2, 0.2], [0.4, 0.6, 0.0], [0.1, 0.9, 0.0]]).clamp(min=1e-30).log()
    odds = negatives.confusion(logps, torch.tensor([0, 0, 1]))
    one, two = (0.2 + 0.6) / 2, (0.2 + 0.0) / 2
    expected = [[0, one / (one + two), two / (one + two)], [0.1 / (0.1 + 0.0), 0, 0], [1 / 2, 1 / 2, 0]]
    assert odds == pytest.approx(np.array(expected), abs=1e-6)


def test_confusion_of_a_certain_model_is_uniform() -> None:
    """Probabilities of exp(-1000) are 0 in float64, so nothing distinguishes the wrong classes."""
    odds = negatives.confusion(torch.tensor([[0.0, -1000.0, -1000.0]]), torch.tensor([0]))
    assert odds[0].tolist() == [0.0, 0.5, 0.5]


@settings(deadline=None, max_examples=40)
@given(classes=st.integers(2, 8), seed=st.integers(0, 1000), scale=st.floats(0, 200))
def test_confusion_is_a_distribution_over_the_wrong_classes(classes: int, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logps = (scale * torch.randn(30, classes, generator=generator)).log_softmax(1)
    odds = negatives.confusion(logps, torch.randint(classes, (30,), generator=generator))
    assert (odds >= 0).all()
    assert np.diag(odds).tolist() == [0.0] * classes
    assert odds.sum(1) == pytest.approx(np.ones(classes))


def test_confusion_negatives_follow_their_odds() -> None:
    """A class with odds of zero is never drawn, not even the last one, where the cumulative odds have reached 1."""
    odds = np.array([[0, 0.7, 0.3, 0], [0.5, 0, 0, 0.5], [0, 1, 0, 0], [0.1, 0.2, 0.7, 0]])
    y_w = torch.arange(4).repeat_interleave(4000)
    y_l = negatives.drawn(odds, y_w, seed=0)(range(16000), 0)
    shares = torch.stack([torch.bincount(y_l[y_w == c], minlength=4) for c in range(4)]).numpy() / 4000
    assert np.abs(shares - odds).max() < 5 * math.sqrt(0.25 / 4000)
    assert (shares[odds == 0] == 0).all()


def test_confusion_is_learnt_from_training_images_only() -> None:
    """The reference confuses training images of class 0 with class 1, validation images of class 0 with class 2."""
    certain = torch.tensor([[0.5, 0.5, 0.0]] * 20 + [[0.5, 0.0, 0.5]] * 20).clamp(min=1e-30).log()
    zeros, ones = torch.zeros(20, dtype=torch.int64), torch.ones(20, dtype=torch.int64)
    splits = {"train": split_of(zeros, ones), "val": split_of(zeros, ones, first=20)}
    draws = negatives.negatives("confusion", splits, Table(certain), 3, seed=0)
    assert draws["val"](range(20), None).tolist() == [1] * 20
    hard = negatives.negatives("hard", splits, Table(certain), 3, seed=0)
    assert hard["val"](range(20), None).tolist() == [2] * 20


def test_negatives_use_other_random_numbers_than_data_order_and_augmentation() -> None:
    """If they shared a stream, y_l would reveal how an image was shifted, or its place in the order."""
    entropies = [[seed, epoch, *row] for seed in (0, 1) for epoch in range(4) for row in ([], [0], [1], [2])]
    others = {number for entropy in entropies for number in np.random.default_rng(entropy).random(50).tolist()}
    for seed in (0, 1):
        for epoch in (None, 0, 1, 2):
            ours = np.random.default_rng(negatives._stream(seed, epoch)).random(50)
            assert others.isdisjoint(ours.tolist())


# Splits

SETTINGS = LabelPairs(max_images=None, val_fraction=0.2, test_fraction=0.2, seed=0)


def test_splits_are_a_function_of_their_seed() -> None:
    """The seed project did not seed them, and validated its policy on images that its reference had been trained on."""
    labels = np.arange(200) % 10
    first, again, other = (pair_labels(labels, np.arange(200), 10, replace(SETTINGS, seed=seed)) for seed in (0, 0, 1))
    assert first.equals(again)
    assert first["split"].to_pylist() != other["split"].to_pylist()
    assert first["y_l"].to_pylist() != other["y_l"].to_pylist()


def test_every_image_stage_reads_the_splits_of_label_pairs() -> None:
    from stages import control_image, dpo_image, evaluate_image, label_pairs, resnet_warmup

    assert {stage.PAIRS for stage in (resnet_warmup, dpo_image, control_image, evaluate_image)} == {label_pairs.OUT}


# Augmentation


def one_by_one(augment: Augmentation, images: Tensor, rows: Any, epoch: int) -> Tensor:
    """What `Augmentation` does, as a loop over images."""
    shift, (height, width) = augment.max_shift, images.shape[-2:]
    padded = nn.functional.pad(images, (shift,) * 4)
    out = torch.empty_like(images)
    for i, row in enumerate(rows):
        rng = np.random.default_rng([augment.seed, epoch, row])
        top, left = rng.integers(0, 2 * shift + 1, size=2)
        crop = padded[i, :, top : top + height, left : left + width]
        out[i] = crop.flip(-1) if augment.flip and rng.random() < 0.5 else crop
    return out


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shape", [(33, 3, 8, 8), (20, 1, 5, 9), (1, 2, 7, 4), (0, 3, 8, 8)])
@pytest.mark.parametrize("shift", [0, 1, 4])
def test_a_batch_is_augmented_as_its_images_one_by_one(shift: int, shape: Any, flip: bool) -> None:
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    augment = Augmentation(shift, flip, seed=2)
    rows = list(range(100, 100 + len(images)))[::-1]
    views = augment(images, rows, epoch=3)
    assert views.dtype == torch.uint8
    assert torch.equal(views, one_by_one(augment, images, rows, 3))


def test_every_epoch_shows_another_crop() -> None:
    """The seed project's RandomCrop(32) of a 32x32 image without padding had only one possible crop."""
    image = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8)
    views = {tuple(Augmentation(2, False, 0)(image, [5], epoch).flatten().tolist()) for epoch in range(200)}
    assert len(views) == 5 * 5


# Scores of a classifier

LOGPS = torch.tensor([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]]).log()
UNIFORM = torch.full((2, 3), 1 / 3).log()
CLASSES = torch.tensor([1, 2])


def test_log_probability_and_confidence_of_a_class_by_hand() -> None:
    """The confidence is p / sum p^2."""
    assert of_class(LOGPS, CLASSES).exp().tolist() == pytest.approx([0.2, 0.5])
    expected = [0.2 / (0.7**2 + 0.2**2 + 0.1**2), 0.5 / (0.25**2 + 0.25**2 + 0.5**2)]
    assert confidence(LOGPS, CLASSES).exp().tolist() == pytest.approx(expected)
    assert correct(LOGPS, CLASSES).tolist() == [0.0, 1.0]


def test_log_confidence_is_zero_for_uniform_and_for_certain_models() -> None:
    assert confidence(UNIFORM, CLASSES).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert confidence(torch.tensor([[-200.0, 0.0, -200.0]]), torch.tensor([1])).tolist() == [0]


def test_kl_by_hand() -> None:
    """To the uniform distribution: ln 3 minus the entropy."""
    entropies = [
        -0.7 * math.log(0.7) - 0.2 * math.log(0.2) - 0.1 * math.log(0.1),
        -0.25 * math.log(0.25) - 0.25 * math.log(0.25) - 0.5 * math.log(0.5),
    ]
    assert kl(LOGPS, UNIFORM).tolist() == pytest.approx([math.log(3) - entropy for entropy in entropies], abs=1e-6)
    assert kl(LOGPS, LOGPS).tolist() == [0, 0]


def test_the_gradient_of_kl() -> None:
    """With logits z: dKL/dz_i = p_i (log p_i - log q_i - KL)."""
    logits = LOGPS.double().requires_grad_()
    policy = logits.log_softmax(1)
    nats = kl(policy, UNIFORM.double())
    nats.sum().backward()
    by_hand = policy.exp() * (policy - UNIFORM - nats[:, None])
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, by_hand.detach())


def test_pair_batch_by_hand() -> None:
    policy = LOGPS.clone().requires_grad_()
    batch = pair_batch(policy, UNIFORM, torch.tensor([0, 2]), torch.tensor([1, 0]))
    squares = torch.tensor([0.7**2 + 0.2**2 + 0.1**2, 0.25**2 + 0.25**2 + 0.5**2])
    expected = PairBatch(
        Response(
            logps=torch.tensor([0.7, 0.5]).log(),
            ref_logps=UNIFORM[:, 0],
            tokens=torch.ones(2),
            confidence=(torch.tensor([0.7, 0.5]) / squares).log(),
        ),
        Response(
            logps=torch.tensor([0.2, 0.25]).log(),
            ref_logps=UNIFORM[:, 0],
            tokens=torch.ones(2),
            confidence=(torch.tensor([0.2, 0.25]) / squares).log(),
        ),
        kl=kl(LOGPS, UNIFORM),
        exact_kl=kl(LOGPS, UNIFORM),
    )
    torch.testing.assert_close(map_tensors(Tensor.detach, batch), expected)
    assert batch.exact_kl is not None
    trained = [batch.chosen.logps, batch.rejected.logps, batch.exact_kl]
    assert [any(t is other for other in trained) for t in tensors(batch)] == [t.requires_grad for t in tensors(batch)]
