"""Confident learning: the share of wrong labels, by hand and with known wrong labels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefdag.images.label_noise import confident_learning, label_noise, neighbour_probabilities


def separable(n_classes: int = 5, per_class: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 1, 6, 6) scattered around one random image per class, and their classes."""
    rng = np.random.default_rng(0)
    classes = np.arange(n_classes * per_class) % n_classes
    centres = rng.integers(60, 196, (n_classes, 1, 6, 6))
    return (centres[classes] + rng.integers(-20, 21, (len(classes), 1, 6, 6))).astype(np.uint8), classes


def test_confident_learning_by_hand() -> None:
    """The thresholds are (0.9 + 0.8 + 0.1) / 3 = 0.6 for class 0 and (0.7 + 0.5) / 2 = 0.6 for class 1.

    So the third image counts for class 1, and the last for none: the counts by label and class are [[2, 1], [0, 1]]. Scaled
    to 3 and 2 images per label, they are [[2, 1], [0, 2]].
    """
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.5, 0.5]])
    estimate, likely = confident_learning(probabilities, np.array([0, 0, 0, 1, 1]))
    assert estimate == pytest.approx((1 + 0) / (2 + 1 + 0 + 2))
    assert likely.tolist() == [0, 0, 1, 1, 1]
    # A class without labels has no threshold, and so no images.
    unused = np.hstack([probabilities, np.zeros((5, 1))])
    assert confident_learning(unused, np.array([0, 0, 0, 1, 1]))[0] == estimate


@pytest.mark.slow
def test_neighbours_are_the_other_images() -> None:
    """Two images of one class and a distant one of another. An image is not its own neighbour."""
    pixels = np.array([[0, 0], [1, 0], [200, 200]], np.uint8)
    probabilities = neighbour_probabilities(pixels, np.array([0, 0, 1]), 3)
    assert probabilities.tolist() == [[1 / 2, 1 / 2, 0], [1 / 2, 1 / 2, 0], [2 / 2, 0, 0]]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2])
def test_flipped_labels_are_estimated_and_identified(share: float) -> None:
    images, classes = separable()
    rng = np.random.default_rng(1)
    flipped = rng.random(len(classes)) < share
    labels = np.where(flipped, (classes + rng.integers(1, 5, len(classes))) % 5, classes)
    noise = label_noise(images, labels, 5)
    assert noise.estimate == pytest.approx(flipped.mean(), abs=0.02)
    assert noise.judge_accuracy == pytest.approx(1 - flipped.mean(), abs=0.02)
    flagged = noise.likely != labels
    assert (noise.likely[flagged] == classes[flagged]).all()
    assert flagged[~flipped].sum() == 0
    assert flagged[flipped].sum() >= 0.6 * flipped.sum()


def test_a_judge_of_random_labels_has_a_low_accuracy() -> None:
    rng = np.random.default_rng(0)
    noise = label_noise(rng.integers(0, 256, (500, 1, 6, 6), dtype=np.uint8), rng.integers(0, 5, 500), 5)
    assert noise.judge_accuracy < 0.35
    assert noise.estimate > 0.5  # worthless, as the accuracy shows


@pytest.mark.slow
@given(st.integers(0, 30), st.integers(1, 4), st.integers(0, 5))
def test_any_number_of_images_and_classes(n: int, n_classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 256, (n, 1, 2, 3), dtype=np.uint8), rng.integers(0, n_classes, n)
    noise = label_noise(images, labels, n_classes)
    assert 0 <= noise.estimate <= 1
    assert 0 <= noise.judge_accuracy <= 1
    assert noise.likely.shape == (n,)
