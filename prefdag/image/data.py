"""Labelled images in memory: splits, normalisation and augmentation, a pure function of seed, epoch and row."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prefdag.distributed.process import process
from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import read_table, read_tensors


@dataclass(frozen=True)
class ImagePairs:
    """The rows of one split."""

    index: list[int]  # (n,): row number in the validated images
    images: Tensor  # uint8 (n, channels, H, W)
    y_w: Tensor  # int64 (n,): the true class, preferred
    y_l: Tensor  # int64 (n,): another class

    def __len__(self) -> int:
        return len(self.index)

    @property
    def ids(self) -> list[str]:
        """The rows' names in error messages."""
        return [f"image {i}" for i in self.index]


def load_splits(images: Path, pairs: Path) -> dict[str, ImagePairs]:
    """The splits train, val and test of the validated images with their label pairs, on the GPU if there is one.

    Raises:
        DataError: a split has no images, or a row's image does not exist.
    """
    device = process().device
    pixels = read_tensors(images / "images.safetensors", "torch")["images"].to(device)
    frame = read_table(pairs / "pairs.parquet", columns=["split", "index", "y_w", "y_l"]).to_pandas()
    if not frame["index"].between(0, len(pixels) - 1).all():
        raise DataError(f"{pairs / 'pairs.parquet'}: not of the images in {images}; `dvc repro` makes it again")
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
    """Random crops of an image padded with `max_shift` pixels of zeros, and horizontal flips."""

    max_shift: int
    flip: bool
    seed: int

    @property
    def changes(self) -> bool:
        """Whether augmentation does anything."""
        return self.max_shift > 0 or self.flip

    def __call__(self, images: Tensor, rows: Sequence[int], epoch: int) -> Tensor:
        """uint8 (n, channels, H, W) to the same shape. Random numbers depend on the row's number, not on the batch."""
        n, channels, height, width = images.shape
        padded = F.pad(images, (self.max_shift,) * 4)
        top, left, flipped = self._draw(rows, epoch).to(images.device).T[:, :, None]  # (n, 1) each
        across = torch.arange(width, device=images.device)
        y = top + torch.arange(height, device=images.device)
        x = left + torch.where(flipped.bool(), across.flip(0), across)
        pixels = y[:, :, None] * padded.shape[-1] + x[:, None, :]  # (n, H, W): indices into the flattened padded image
        return padded.flatten(2).gather(2, pixels.flatten(1)[:, None].expand(n, channels, -1)).view_as(images)

    def _draw(self, rows: Sequence[int], epoch: int) -> Tensor:
        """The top and left pixel of each row's crop, and whether it is flipped, 0 or 1: int64 (n, 3)."""
        drawn = np.zeros((len(rows), 3), dtype=np.int64)
        for i, row in enumerate(rows):
            rng = np.random.default_rng([self.seed, epoch, row])
            drawn[i, :2] = rng.integers(0, 2 * self.max_shift + 1, size=2)
            drawn[i, 2] = self.flip and rng.random() < 0.5
        return torch.from_numpy(drawn)


def augmented(split: ImagePairs, rows: Sequence[int], epoch: int | None, augment: Augmentation) -> Tensor:
    """The images of some rows, augmented for an epoch; unchanged if `epoch` is None."""
    images = split.images[list(rows)]
    return images if epoch is None else augment(images, rows, epoch)
