"""Estimate how many labels are wrong, and which, by confident learning (Northcutt et al. 2021, arXiv:1911.00068).

The classifier that judges the labels needs no training: it is the nearest other images. It is poor on photographs, so read the
estimate together with its accuracy: if the judge is wrong more often than the labels, the estimate mostly reflects the judge.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

NEIGHBOURS = 10
COMPONENTS = 50  # principal components of the pixels, in which distances are measured
FITTED_ON = 10_000  # the components are fitted on at most this many images

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class LabelNoise(NamedTuple):
    """The labels of N images compared with those of their nearest images."""

    estimate: float  # the share of wrong labels, by confident learning
    judge_accuracy: float  # the share of labels that equal the most frequent one among the nearest images
    probabilities: Floats  # (N, classes): the share of each class among the nearest images
    likely: Ints  # (N,): the class as which confident learning counts an image; its label if it is not counted


def label_noise(images: npt.NDArray[np.uint8], labels: Ints, n_classes: int) -> LabelNoise:
    """Judge the labels by the nearest images.

    Args:
        images: (N, C, H, W), without copies, since the nearest image of a copy would be its original.
        labels: (N,), from 0 to n_classes - 1.
    """
    probabilities = neighbour_probabilities(images.reshape(len(images), math.prod(images.shape[1:])), labels, n_classes)
    estimate, likely = confident_learning(probabilities, labels)
    accuracy = float((probabilities.argmax(axis=1) == labels).mean()) if len(labels) else 0.0
    return LabelNoise(estimate, accuracy, probabilities, likely)


def neighbour_probabilities(pixels: npt.NDArray[np.uint8], labels: Ints, n_classes: int) -> Floats:
    """The share of each class, (N, n_classes), among the nearest neighbours of each row of `pixels`, (N, D).

    Distances are measured in principal components. All zero for a single row, which has no neighbours.
    """
    from sklearn.decomposition import PCA  # a second of import
    from sklearn.neighbors import NearestNeighbors

    n = len(pixels)
    if n < 2:
        return np.zeros((n, n_classes))
    sample = pixels[:: math.ceil(n / FITTED_ON)].astype(np.float32)
    pca = PCA(min(COMPONENTS, *sample.shape), svd_solver="randomized", random_state=0).fit(sample)
    # In parts, since all pixels as float32 would take four times their memory.
    projected = np.concatenate(
        [pca.transform(part.astype(np.float32)) for part in np.array_split(pixels, n // FITTED_ON + 1)]
    )
    # In 50 dimensions a tree visits nearly every point; one matrix product per block of rows is faster.
    nearest = NearestNeighbors(n_neighbors=min(NEIGHBOURS, n - 1), algorithm="brute").fit(projected)
    neighbours = nearest.kneighbors(return_distance=False)  # of each row, without itself
    return np.eye(n_classes)[labels[neighbours]].mean(axis=1)


def confident_learning(probabilities: Floats, labels: Ints) -> tuple[float, Ints]:
    """The share of wrong labels, and the class (N,) as which each image is counted; its label if it is not counted.

    Class j is a candidate for an image if its probability is at least t_j, the mean probability of class j over the images
    labelled j. An image is counted as its most probable candidate (eq. 1 and 2). The counts of each label are scaled to the
    number of images with that label (eq. 3). The estimate is the share off the diagonal.

    Args:
        probabilities: (N, classes), from a judge that has not seen the label of the image.
        labels: (N,)
    """
    n, n_classes = probabilities.shape
    sizes = np.bincount(labels, minlength=n_classes)
    own = probabilities[np.arange(n), labels]
    thresholds = np.bincount(labels, own, minlength=n_classes) / np.maximum(sizes, 1)
    thresholds[sizes == 0] = np.inf
    # Rounding can put the mean of equal numbers slightly above them.
    confident = np.where(probabilities >= thresholds - 1e-9, probabilities, -1.0)
    best = confident.max(axis=1)
    # Ties go to the label.
    likely = np.where(confident[np.arange(n), labels] == best, labels, confident.argmax(axis=1))
    counted = best >= 0
    counts = np.zeros((n_classes, n_classes))
    np.add.at(counts, (labels[counted], likely[counted]), 1)
    rows = counts.sum(axis=1)
    joint = counts * np.divide(sizes, rows, out=np.zeros(n_classes), where=rows > 0)[:, None]
    return (float(1 - np.trace(joint) / joint.sum()) if joint.sum() else 0.0), likely
