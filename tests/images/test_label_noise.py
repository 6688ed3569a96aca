"""Confident learning: the share of wrong labels by hand, and found again where it was put in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefdag.images.label_noise import confident_learning, label_noise, neighbour_probabilities


def separable(n_classes: int = 5, of_each: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 1, 6, 6) scattered about a random one a class, and their classes."""
    rng = np.random.default_rng(0)
    classes = np.arange(n_classes * of_each) % n_classes
    centres = rng.integers(60, 196, (n_classes, 1, 6, 6))
    return (centres[classes] + rng.integers(-20, 21, (len(classes), 1, 6, 6))).astype(np.uint8), classes


def test_confident_learning_by_hand() -> None:
    """Thresholds: class 0 (.9 + .8 + .1) / 3 = .6, class 1 (.7 + .5) / 2 = .6.

    The third image counts under class 1, the last under none: counts [[2, 1], [0, 1]], of sizes 3 and 2 [[2, 1], [0, 2]].
    """
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.5, 0.5]])
    estimate, likely = confident_learning(probabilities, np.array([0, 0, 0, 1, 1]))
    assert estimate == pytest.approx(1 / 5)
    assert likely.tolist() == [0, 0, 1, 1, 1]
    # A class that no image is labelled as has no threshold, hence no images.
    unused = np.hstack([probabilities, np.zeros((5, 1))])
    assert confident_learning(unused, np.array([0, 0, 0, 1, 1]))[0] == estimate


def test_neighbours_are_the_others() -> None:
    """Two images of one class, and one of another far away, which has only the two as neighbours."""
    pixels = np.array([[0, 0], [1, 0], [200, 200]], np.uint8)
    found = neighbour_probabilities(pixels, np.array([0, 0, 1]), 3)
    assert found.tolist() == [[0.5, 0.5, 0], [0.5, 0.5, 0], [1, 0, 0]]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2])
def test_flipped_labels_are_estimated_and_named(share: float) -> None:
    images, classes = separable()
    rng = np.random.default_rng(1)
    flipped = rng.random(len(classes)) < share
    labels = np.where(flipped, (classes + rng.integers(1, 5, len(classes))) % 5, classes)
    found = label_noise(images, labels, 5)
    assert found.estimate == pytest.approx(flipped.mean(), abs=0.02)
    assert found.judge_accuracy == pytest.approx(1 - flipped.mean(), abs=0.02)
    named = found.likely != labels
    assert (found.likely[named] == classes[named]).all()
    assert named[~flipped].sum() == 0
    assert named[flipped].sum() >= 0.6 * flipped.sum()


def test_a_judge_that_knows_nothing_says_so() -> None:
    rng = np.random.default_rng(0)
    found = label_noise(rng.integers(0, 256, (500, 1, 6, 6), dtype=np.uint8), rng.integers(0, 5, 500), 5)
    assert found.judge_accuracy < 0.35
    assert found.estimate > 0.5  # worthless, which the accuracy tells


@given(st.integers(0, 30), st.integers(1, 4), st.integers(0, 5))
def test_any_number_of_images_and_classes(n: int, n_classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 256, (n, 1, 2, 3), dtype=np.uint8), rng.integers(0, n_classes, n)
    found = label_noise(images, labels, n_classes)
    assert 0 <= found.estimate <= 1
    assert 0 <= found.judge_accuracy <= 1
    assert found.likely.shape == (n,)
