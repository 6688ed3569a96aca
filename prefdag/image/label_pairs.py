"""Give labelled images pairs of classes, in splits without leaks."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prefdag.lifecycle.errors import DataError
from prefdag.pairs.splits import SPLITS, check_fractions, empty_splits

if TYPE_CHECKING:
    from prefdag.config.label_pairs import LabelPairs

IMAGE_PAIRS_SCHEMA = pa.schema({"index": pa.int64(), "split": pa.string(), "y_w": pa.int64(), "y_l": pa.int64()})

FURTHER = {split: i for i, split in enumerate(SPLITS)}  # from training

Ints = npt.NDArray[np.int64]


def label_pairs(
    labels: Ints, groups: Ints, n_classes: int, params: "LabelPairs", published: Sequence[str] | None = None
) -> pa.Table:
    """Pairs of classes for images: y_w is the label, y_l one of the other classes with equal probability.

    Images that were published as test or val stay there. The fractions split the others: `test_fraction` if there is no
    published test split, `val_fraction` if there is no published val split.

    Args:
        labels: int64 (N,), from 0 to n_classes - 1.
        groups: int64 (N,), any numbers; images of one group are in the same split.
        published: the split (N,) in which each image was published: train, val or test.

    Returns:
        `IMAGE_PAIRS_SCHEMA`, ordered by index. Splits are stratified by class as far as whole groups allow. `max_images` are
        taken from the classes in turn. An image is left out if its group has images that were published in a split held out
        further from training: test, then val.

    Raises:
        DataError: there is only one class, or a split would be empty.
        ParamsError: the fractions leave nothing to train on.
    """
    check_fractions("label_pairs", params)
    if n_classes < 2:
        raise DataError("data/validated/images: one class only; a pair needs a second class to reject")
    rng = np.random.default_rng(params.seed)
    y_l = (labels + rng.integers(1, n_classes, len(labels))) % n_classes
    rank = _rank_in_class(labels, rng.permutation(len(labels)))
    order = np.lexsort((labels, rank))  # the first of each class, then the second of each, ...
    held = _held_out(published or ["train"] * len(labels))
    kept = np.sort(order[~_copies_further_out(held, groups)[order]][: params.max_images])
    # The fractions are those of the images that are published neither as test nor as val.
    fractions = {"val": params.val_fraction, "test": params.test_fraction}
    drawn = {name: 0.0 if (held == FURTHER[name]).any() else fraction for name, fraction in fractions.items()}
    split = np.array(SPLITS)[held[kept]]
    rest = kept[held[kept] == 0]
    split[held[kept] == 0] = _split(labels[rest], groups[rest], rank[rest], **drawn)
    wanted = {name: 1.0 if (held == FURTHER[name]).any() else fraction for name, fraction in fractions.items()}
    if empty := empty_splits(split, wanted["val"], wanted["test"]):
        counts = f"{len(kept)} images of {n_classes} classes leave {' and '.join(empty)} empty"
        raise DataError(f"data/validated/images: {counts}; use more images or change the fractions")
    return pa.table([kept, split.tolist(), labels[kept], y_l[kept]], IMAGE_PAIRS_SCHEMA)


def check_published(labels: Ints, published: Sequence[str], classes: Sequence[str]) -> None:
    """Check that published splits leave images of every class to train on. Raises `DataError`."""
    held = _held_out(published)
    names = " and ".join(split for split in ("val", "test") if split in published)
    for label in np.unique(labels):
        if held[labels == label].all():
            what = "all images were" if held.all() else f"all images of class {classes[label]} were"
            raise DataError(
                f"data/validated/images: {what} published as {names}, by the names of their folders or files, so none is left"
                " to train on; add others, or rename the folders if these are no splits"
            )


def published_summary(published: Sequence[str], groups: Ints) -> dict[str, Any]:
    """Counts of the images as published, and of those left out as copies of images that are held out further."""
    left_out = _copies_further_out(_held_out(published), groups)
    return {"published": dict(sorted(Counter(published).items())), "left_out": int(left_out.sum())}


def split_summary(pairs: pa.Table, copies: pa.Table, classes: Sequence[str]) -> dict[str, Any]:
    """Counts of the images in the splits, made from the pairs themselves.

    Args:
        pairs: `IMAGE_PAIRS_SCHEMA`.
        copies: one row per image, also for images without a pair; images with the same value in a column are copies.

    Returns:
        images: the count by split and class; straddling: by column of `copies`, the images with a copy in another split.
    """
    split, y_w, index = (pairs[name].to_pylist() for name in ("split", "y_w", "index"))
    counts = Counter(zip(split, y_w, strict=True))
    straddling = {}
    for column in copies.column_names:
        keys = copies[column].take(index).to_pylist()
        splits_of = Counter(key for key, _ in set(zip(keys, split, strict=True)))
        straddling[column] = sum(splits_of[key] > 1 for key in keys)
    images = {name: {label: counts[name, i] for i, label in enumerate(classes)} for name in SPLITS}
    return {"images": images, "straddling": straddling}


def _held_out(published: Sequence[str]) -> Ints:
    """How far each image was held out from training: 0 if it was not."""
    return np.array([FURTHER[split] for split in published], dtype=np.int64)


def _copies_further_out(held: Ints, groups: Ints) -> npt.NDArray[np.bool_]:
    """Whether an image's group has images that are held out further than it."""
    _, group = np.unique(groups, return_inverse=True)
    furthest = np.zeros(group.max(initial=-1) + 1, dtype=np.int64)
    np.maximum.at(furthest, group, held)
    return held < furthest[group]


def _split(labels: Ints, groups: Ints, rank: Ints, val: float, test: float) -> npt.NDArray[np.str_]:
    """The split of each image; `rank` gives the order of the images in their class."""
    # A group is assigned as a whole: as its first image, with the weight of all its images.
    _, first, group, size = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    # If groups are sorted by their place in their class, from 0 to 1, every section has the classes in their proportions.
    # So the first `test_fraction` of all images is test, the next `val_fraction` val.
    place = _place_in_class(labels[first], size, rank[first])
    order = np.lexsort((labels[first], place))
    middle = np.empty(len(first))
    middle[order] = np.cumsum(size[order]) - size[order] / 2
    n_test, n_val = (round(fraction * len(labels)) for fraction in (test, val))
    return np.select([middle < n_test, middle < n_test + n_val], ["test", "val"], "train")[group]


def _rank_in_class(labels: Ints, order: Ints) -> Ints:
    """The number of images of the same class that come before each image in `order` (a permutation)."""
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    return rank


def _place_in_class(labels: Ints, sizes: Ints, rank: Ints) -> npt.NDArray[np.float64]:
    """The position of the middle of each group in its class, from 0 to 1, with the groups in the order of `rank`."""
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        members = members[np.argsort(rank[members])]
        ends = np.cumsum(sizes[members])
        place[members] = (ends - sizes[members] / 2) / ends[-1]
    return place
