"""What the gate checks of images, one row per image and one per class: copies, conflicts and suspicious labels."""

from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from prefdag.gate.duplicates import copy_of
from prefdag.images.label_noise import LabelNoise, label_noise
from prefdag.images.labelled import ImageFault, Images

# Of 64 bits. For digits and CIFAR-10, 70 to 97 % of JPEG copies, slightly brighter copies and resized copies have the same
# hash as the original, and 90 % or more are within 2 bits. Two shots of the same scene are within 6.
HASH_DISTANCE = 6
FAULTS = ["format", "content", "mode", "size"]  # columns of images that cannot be read
COPIES = ["exact", "perceptual"]  # columns in which copies have equal values


def image_rows(data: Images, similarity: float, min_judge_accuracy: float) -> tuple[pd.DataFrame, LabelNoise]:
    """One row per image for the checks, and the estimate of label noise behind the suspected labels.

    Images that cannot be read come first. Besides source, they only have fault_column, fault and excerpt. The others have
    label; contrast (largest pixel minus smallest); exact and perceptual (equal in copies and in near copies); copy_of,
    near_copy_of and conflict_with (the source of that image, or null); and likely (null, or a suspected label's likely class).

    Args:
        similarity: of near copies, see `perceptual_groups`.
        min_judge_accuracy: if the accuracy of the label-noise judge is lower, no label is suspected.
    """
    flat = data.images.reshape(len(data.images), -1)
    sources, labels = pd.Series(data.sources), pd.Series(data.labels)
    exact = pd.Series([sha256(image.tobytes()).hexdigest()[:16] for image in flat])
    copies = copy_of(sources, exact)
    distinct = copies.isna().to_numpy()
    number, hashes = pd.factorize(exact)  # in the order of the distinct images
    perceptual = pd.Series(hashes[perceptual_groups(data.images[distinct], similarity)][number])
    judged = distinct & labels.between(0, len(data.classes) - 1).to_numpy()
    noise = label_noise(data.images[judged], data.labels[judged], len(data.classes))
    likely = np.full(len(labels), None, dtype=object)
    if noise.judge_accuracy >= min_judge_accuracy:
        likely[judged] = _suspicions(noise, data.labels[judged], data.classes)
    read = pd.DataFrame(
        {
            "source": sources,
            "label": labels,
            "contrast": flat.max(axis=1).astype(int) - flat.min(axis=1),
            "exact": exact,
            "perceptual": perceptual,
            "copy_of": copies,
            "near_copy_of": copy_of(sources, perceptual).where(copies.isna()),
            "conflict_with": conflict_with(sources, exact, labels),
            "likely": likely,
        }
    )
    rows = pd.concat([pd.DataFrame(data.faults, columns=ImageFault._fields), read], ignore_index=True)
    numbers = ("label", "contrast")  # integers, null if the image has a fault
    return rows.astype({column: "Int64" if column in numbers else "str" for column in rows}), noise


def class_rows(labels: npt.NDArray[np.int64], classes: Sequence[str]) -> pd.DataFrame:
    """One row per class: source (its name), images, times_smallest (its images over those of the smallest class)."""
    inside = labels[(labels >= 0) & (labels < len(classes))]
    sizes = np.bincount(inside, minlength=len(classes))
    names = [f"class {name}" for name in classes]
    return pd.DataFrame({"source": names, "images": sizes, "times_smallest": sizes / max(1, sizes.min())})


def unreadable_first(offending: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows to name when the stage stops, and what to add: if classes are at fault, unreadable images may be the cause.

    Args:
        offending: the rows that fail, as `checks.check` returns them.
    """
    unreadable = (offending["level"] == "drop") & offending["column"].isin(FAULTS)
    classes = offending[(offending["level"] == "error") & offending["source"].str.startswith("class ")]
    if classes.empty or not unreadable.any():
        return offending, ""
    first = classes.iloc[0]
    named = offending.assign(level=offending["level"].mask(unreadable, "error"))
    return named, f"; without them, {first['source']}: {first['reason']}"


def images_summary(rows: pd.DataFrame, noise: LabelNoise, written: Images) -> dict[str, Any]:
    """Counts over all `rows`, over the images that are `written`, and what reading did besides."""
    counted = {"unreadable": "fault", "exact_copies": "copy_of", "near_copies": "near_copy_of"}
    counted |= {"conflicting_copies": "conflict_with", "suspected_labels": "likely"}
    sizes = class_rows(written.labels, written.classes)["images"]
    return {
        "read": len(rows),
        "written": len(written.labels),
        "classes": dict(zip(written.classes, sizes.tolist(), strict=True)),
        **{name: int(rows[column].notna().sum()) for name, column in counted.items()},
        "label_noise": {"estimate": round(noise.estimate, 4), "judge_accuracy": round(noise.judge_accuracy, 4)},
        **written.notes.summary(),
        "published_splits": dict(sorted(Counter(written.split or []).items())),
    }


def perceptual_groups(images: npt.NDArray[np.uint8], similarity: float) -> npt.NDArray[np.int64]:
    """The group of each image, int64 (N,): the index of the first image that it is linked to by a chain of similar images.

    Two images are similar if their perceptual hashes (pHash, Zauner 2010: which of the 64 lowest frequencies are above the
    median) differ in at most `HASH_DISTANCE` bits, and their pixels correlate by `similarity` or more. The hash is not enough:
    with 64 bits, many hand-written digits share one. All hashes are compared with each other, which takes seconds for 60,000
    images; pixels are compared only if the hashes are close.

    Args:
        images: (N, C, H, W), all different.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    hashes = np.array([_perceptual_hash(image) for image in images], dtype=np.uint64)
    alike: list[tuple[int, int]] = []
    for i, bits in enumerate(hashes):
        close = np.flatnonzero(np.bitwise_count(hashes[:i] ^ bits) <= HASH_DISTANCE)
        alike += [(i, int(j)) for j in close[correlation(images[i], images[close]) >= similarity]]
    one, other = np.array(alike, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(one)), (one, other)), shape=(len(images), len(images)))
    _, component = connected_components(graph, directed=False)
    _, first, group = np.unique(component, return_index=True, return_inverse=True)
    return first[group]


def correlation(image: npt.NDArray[np.uint8], others: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Pearson correlation of the pixels of `image` (C, H, W) with those of each of `others` (n, C, H, W), of shape (n,).

    It ignores brightness and contrast. NaN if all pixels of an image are equal.
    """
    one = image.ravel() - image.mean()
    many = others.reshape(len(others), image.size)
    many = many - many.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return (many @ one) / np.sqrt((one @ one) * (many * many).sum(axis=1))


def conflict_with(sources: "pd.Series[str]", content: "pd.Series[str]", labels: "pd.Series[int]") -> "pd.Series[str]":
    """The source of the first row with the same content and another label, per row; null if there is none."""
    first: dict[str, dict[int, str]] = {}
    for source, same, label in zip(sources, content, labels, strict=True):
        first.setdefault(same, {}).setdefault(label, source)
    conflicts = [
        next((source for other, source in first[same].items() if other != label), None)
        for same, label in zip(content, labels, strict=True)
    ]
    return pd.Series(conflicts, sources.index, "str")


def _perceptual_hash(image: npt.NDArray[np.uint8]) -> int:
    """The 64-bit hash of a (C, H, W) image."""
    import imagehash

    picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    return int(str(imagehash.phash(picture)), 16)


def _suspicions(noise: LabelNoise, labels: npt.NDArray[np.int64], classes: Sequence[str]) -> list[str | None]:
    """The likely class of each image and the evidence for it; None if that class is its label."""
    return [
        f"{classes[likely]}: {shares[likely]:.0%} of the nearest images, {shares[label]:.0%} {classes[label]}"
        if likely != label
        else None
        for label, likely, shares in zip(labels, noise.likely, noise.probabilities, strict=True)
    ]
