"""How many labels are wrong, and which, by confident learning (Northcutt et al. 2021, arXiv:1911.00068).

The judge is one that needs no training: the nearest other images. It knows little of photographs, which the estimate must be
read with: where the judge errs more often than the labels do, it says more of the judge than of them.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

NEIGHBOURS = 10
COMPONENTS = 50  # principal components of the pixels, in which distances are taken
FITTED_ON = 10_000  # images at most that the components come from

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class LabelNoise(NamedTuple):
    """What the labels of N images look like beside those of the images nearest to them."""

    estimate: float  # the share of wrong labels, by confident learning
    judge_accuracy: float  # the share of labels that are the most frequent among the nearest images
    probabilities: Floats  # (N, classes): the share of each class among these
    likely: Ints  # (N,): the class under which confident learning counts an image, its label where that is none


def label_noise(images: npt.NDArray[np.uint8], labels: Ints, n_classes: int) -> LabelNoise:
    """Labels judged by the nearest images.

    Args:
        images: (N, C, H, W), without copies: of a copy, its own label would be the nearest.
        labels: (N,), from 0 to n_classes - 1.
    """
    probabilities = neighbour_probabilities(images.reshape(len(images), math.prod(images.shape[1:])), labels, n_classes)
    estimate, likely = confident_learning(probabilities, labels)
    accuracy = float((probabilities.argmax(axis=1) == labels).mean()) if len(labels) else 0.0
    return LabelNoise(estimate, accuracy, probabilities, likely)


def neighbour_probabilities(pixels: npt.NDArray[np.uint8], labels: Ints, n_classes: int) -> Floats:
    """The share of each class, (N, n_classes), among the nearest others of each of `pixels`, (N, D), in principal components.

    All zero for a single row, which has no other.
    """
    from sklearn.decomposition import PCA  # a second of import
    from sklearn.neighbors import NearestNeighbors

    n = len(pixels)
    if n < 2:
        return np.zeros((n, n_classes))
    some = pixels[:: math.ceil(n / FITTED_ON)].astype(np.float32)
    pca = PCA(min(COMPONENTS, *some.shape), svd_solver="randomized", random_state=0).fit(some)
    # In parts: as float32 the pixels would take four times their memory.
    places = np.concatenate(
        [pca.transform(part.astype(np.float32)) for part in np.array_split(pixels, n // FITTED_ON + 1)]
    )
    # In 50 dimensions a tree visits nearly every point; one product of matrices a block of rows is quicker.
    nearest = NearestNeighbors(n_neighbors=min(NEIGHBOURS, n - 1), algorithm="brute").fit(places)
    neighbours = nearest.kneighbors(return_distance=False)  # of each row among the others
    return np.eye(n_classes)[labels[neighbours]].mean(axis=1)


def confident_learning(probabilities: Floats, labels: Ints) -> tuple[float, Ints]:
    """The share of wrong labels, and the class (N,) under which each image is counted, its label where under none.

    An image counts under the most probable of the classes whose probability for it is at least t_j, the mean probability of
    class j for the images labelled j (eq. 1 and 2). The counts of each label are scaled to the number of images that have it
    (eq. 3); the estimate is what lies off the diagonal.

    Args:
        probabilities: (N, classes), of each class for each image, from a judge that has not seen its label.
        labels: (N,)
    """
    n, n_classes = probabilities.shape
    sizes = np.bincount(labels, minlength=n_classes)
    own = probabilities[np.arange(n), labels]
    thresholds = np.bincount(labels, own, minlength=n_classes) / np.maximum(sizes, 1)
    thresholds[sizes == 0] = np.inf
    # The mean of equal numbers may come out a little above them.
    confident = np.where(probabilities >= thresholds - 1e-9, probabilities, -1.0)
    best = confident.max(axis=1)
    # The label wins where it is as probable as another class.
    likely = np.where(confident[np.arange(n), labels] == best, labels, confident.argmax(axis=1))
    counted = best >= 0
    counts = np.zeros((n_classes, n_classes))
    np.add.at(counts, (labels[counted], likely[counted]), 1)
    rows = counts.sum(axis=1)
    joint = counts * np.divide(sizes, rows, out=np.zeros(n_classes), where=rows > 0)[:, None]
    return (float(1 - np.trace(joint) / joint.sum()) if joint.sum() else 0.0), likely
