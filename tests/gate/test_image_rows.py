"""Copies, near copies and contradictions among images."""

import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prefdag.gate.image_rows import class_rows, conflict_with, correlation, perceptual_groups


def photographs(n: int) -> np.ndarray:
    """Smooth random images, uint8 (n, 3, 32, 32)."""
    coarse = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    return np.stack([np.array(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)) for image in coarse])


def jpeg(image: np.ndarray) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=80, subsampling=0)  # colours vary more than in nature
    return np.array(Image.open(stream))


def darker(image: np.ndarray) -> np.ndarray:
    return (image * 0.8).astype(np.uint8)


def resized(image: np.ndarray) -> np.ndarray:
    big = Image.fromarray(image).resize((80, 80), Image.Resampling.BICUBIC)
    return np.array(big.resize((32, 32), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("change", [jpeg, darker, resized])
def test_changed_copies_are_found_and_others_are_not(change: object) -> None:
    assert callable(change)
    originals = photographs(40)
    images = np.concatenate([originals, np.stack([change(image) for image in originals])]).transpose(0, 3, 1, 2)
    assert perceptual_groups(images, 0.98).tolist() == [*range(40)] * 2
    assert perceptual_groups(images, 1.0).tolist() != [*range(40)] * 2


def test_a_chain_of_near_copies_makes_few_groups() -> None:
    """40 small steps from one image to another give fewer than ten groups, although the ends are not alike."""
    first, last = photographs(2).astype(float)
    steps = np.stack([first + (last - first) * share for share in np.linspace(0, 1, 41)]).astype(np.uint8)
    images = steps.transpose(0, 3, 1, 2)
    assert correlation(images[0], images[-1:])[0] < 0.5
    assert perceptual_groups(images[[0, -1]], 0.98).tolist() == [0, 1]
    assert perceptual_groups(images, 0.98).max() < 10


def test_blank_images_have_no_near_copies() -> None:
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 1, 8, 8), np.uint8)
    assert perceptual_groups(images, 0.5).tolist() == [0, 1, 2, 3, 4]
    assert perceptual_groups(images[:0], 0.5).tolist() == []


@given(st.integers(0, 9), st.integers(1, 6))
def test_correlation_equals_numpys(seed: int, n: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (n + 1, 3, 4, 5), dtype=np.uint8)
    expected = np.corrcoef(images.reshape(n + 1, -1).astype(float))[0, 1:]
    np.testing.assert_allclose(correlation(images[0], images[1:]), expected, atol=1e-12)


def test_conflicts_by_hand() -> None:
    """b and d have the same content, y, but the labels 1 and 2. Both images with the content x have label 0."""
    sources, content, labels = pd.Series(list("abcde")), pd.Series(list("xyxyz")), pd.Series([0, 1, 0, 2, 3])
    assert conflict_with(sources, content, labels).dropna().to_dict() == {1: "d", 3: "b"}


def test_class_rows_by_hand() -> None:
    rows = class_rows(np.array([0, 0, 0, 0, 2, 2, 9, -1]), ["a", "b", "c"])
    assert rows["source"].tolist() == ["class a", "class b", "class c"]
    assert rows["images"].tolist() == [4, 0, 2]
    assert rows["times_smallest"].tolist() == [4 / 1, 0 / 1, 2 / 1]  # an empty class counts as one image
