"""Image files for tests."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import REAL_DATA
from PIL import ExifTags, Image
from tars import tar

from prefdag.images.reading import CIFAR10

PUBLISHED = REAL_DATA / "cifar10"
rng = np.random.default_rng(0)

# Runs a test on made-up tars in the format of CIFAR-10 (`tars` is None) and on tars of 7,000 published images.
cifar10_tars = pytest.mark.parametrize(
    "tars",
    [
        pytest.param(None, id="made up"),
        pytest.param(
            PUBLISHED,
            id="published",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(not PUBLISHED.exists(), reason="the published tars are not on this machine"),
            ],
        ),
    ],
)


def mnist_csv(labels: list[int], edit: Callable[[list[list[str]]], object] = lambda rows: None) -> bytes:
    """A CSV with rows of 784 random pixels and a label, which `edit` may break."""
    rows = [[*map(str, rng.integers(0, 256, 784)), str(label)] for label in labels]
    edit(rows)
    return "".join(",".join(row) + "\n" for row in rows).encode()


def picture(size: tuple[int, int] = (4, 3), mode: str = "RGB", kind: str = "PNG", **options: Any) -> bytes:
    """A random image of size (width, height), as a PNG or a file of another kind; `options` of its writer."""
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image = image.convert("L").convert(mode) if mode.startswith("I;16") else image.convert(mode)
    return saved(image, kind, **options)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The file of an image."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def orientation(value: int) -> bytes:
    """EXIF with the orientation 1 to 8 in which an image was stored."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    return exif.tobytes()


def write_cifar10_tars(folder: Path, of_each: dict[str, int]) -> None:
    """Write SPLIT.tar for each split, with SPLIT/CLASS/0000.jpg and so on: `of_each[split]` random images of every class.

    The first test image is a copy of the first training image with another JPEG quality, as is common on the web.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        split: {f"{split}/{name}/{i:04}.jpg": picture((32, 32), kind="JPEG") for name in CIFAR10 for i in range(n)}
        for split, n in of_each.items()
    }
    if "test" in files:
        stream = io.BytesIO()
        Image.open(io.BytesIO(files["train"]["train/airplane/0000.jpg"])).save(stream, "JPEG", quality=90)
        files["test"]["test/airplane/0000.jpg"] = stream.getvalue()
    for split, members in files.items():
        (folder / f"{split}.tar").write_bytes(tar(dict(members)))


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
