"""Labelled images in memory: splits, normalisation, and augmentation that is a pure function of seed, epoch and row."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor

from prefdag.errors import DataError
from prefdag.process import process


@dataclass(frozen=True)
class ImagePairs:
    """The rows of one split."""

    index: list[int]  # (n,): row in the validated images
    images: Tensor  # uint8 (n, channels, H, W)
    y_w: Tensor  # int64 (n,): the true class, preferred
    y_l: Tensor  # int64 (n,): another class

    def __len__(self) -> int:
        return len(self.index)

    @property
    def ids(self) -> list[str]:
        """How an error names a row."""
        return [f"image {i}" for i in self.index]


def load_splits(images: Path, pairs: Path) -> dict[str, ImagePairs]:
    """The splits train, val and test from the validated images and their label pairs, on a GPU where there is one.

    Raises:
        DataError: a split has no images.
    """
    device = process().device
    pixels = load_file(images / "images.safetensors")["images"].to(device)
    frame = pd.read_parquet(pairs / "pairs.parquet")
    for split in ("train", "val", "test"):
        if split not in set(frame["split"]):
            raise DataError(
                f"{pairs / 'pairs.parquet'}: no images in split {split}; raise the fractions of label_pairs"
            )
    return {
        str(split): ImagePairs(
            rows["index"].tolist(),
            pixels[torch.from_numpy(rows["index"].to_numpy().copy()).to(device)],
            *(torch.from_numpy(rows[column].to_numpy().copy()).to(device) for column in ("y_w", "y_l")),
        )
        for split, rows in frame.groupby("split")
    }


def normalise(images: Tensor) -> Tensor:
    """uint8 in 0..255 to float32 in -1..1, channels last in memory."""
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Augmentation:
    """Random crops out of an image padded by `max_shift` pixels of zeros, and mirror images."""

    max_shift: int
    flip: bool
    seed: int

    def __call__(self, images: Tensor, rows: Sequence[int], epoch: int) -> Tensor:
        """uint8 (n, channels, H, W) to the same shape, drawn for each row by its number, whatever the batch."""
        shift = self.max_shift
        height, width = images.shape[-2:]
        padded = torch.nn.functional.pad(images, (shift,) * 4)
        out = torch.empty_like(images)
        for i, row in enumerate(rows):
            rng = np.random.default_rng([self.seed, epoch, row])
            top, left = rng.integers(0, 2 * shift + 1, size=2)
            crop = padded[i, :, top : top + height, left : left + width]
            out[i] = crop.flip(-1) if self.flip and rng.random() < 0.5 else crop
        return out
