"""Readers of labelled images: every source becomes one uint8 array, one label array and the names of the classes."""

import io
import tarfile
import zlib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from prefdag.artifacts import write_json
from prefdag.errors import DataError

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
DIGITS = [str(digit) for digit in range(10)]
MNIST_SIDE = 28  # pixels
TARS = (".tar", ".tar.gz", ".tgz")


class Images(NamedTuple):
    """N images of one size, in a fixed order."""

    images: npt.NDArray[np.uint8]  # (N, C, H, W), C = 1 (grey) or 3 (red, green, blue)
    labels: npt.NDArray[np.int64]  # (N,), indices into classes
    classes: list[str]
    sources: list[str]  # (N,), FILE:ROW or FILE, unique


def read_images(folder: Path, source_format: str) -> Images:
    """The images below `folder`. Labels of mnist-csv and cifar10 are taken as they are: their range is for the checks.

    Raises:
        DataError: there are no images, one cannot be decoded, or their sizes or modes differ.
    """
    readers = {"mnist-csv": _mnist_csv, "image-folder": _image_folder, "cifar10": _cifar10}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise DataError(f"{folder}: no files; look at download_images.source in params.yaml")
    return readers[source_format](folder, files)


def write_images(folder: Path, data: Images) -> None:
    """`folder` with images.safetensors (images, labels) and classes.json."""
    folder.mkdir(parents=True)
    # The library writes an array's memory as it lies: one in another order, a transposed view say, would be scrambled.
    tensors: dict[str, np.ndarray] = {
        "images": np.ascontiguousarray(data.images),
        "labels": np.ascontiguousarray(data.labels),
    }
    save_file(tensors, folder / "images.safetensors")
    write_json(folder / "classes.json", data.classes)


def image_rows(data: Images) -> pd.DataFrame:
    """What the checks judge, a row an image: source, label, contrast (largest pixel minus smallest), content (hash)."""
    flat = data.images.reshape(len(data.images), -1)
    return pd.DataFrame(
        {
            "source": data.sources,
            "label": data.labels,
            "contrast": flat.max(axis=1).astype(int) - flat.min(axis=1),
            "content": [sha256(image.tobytes()).hexdigest()[:16] for image in flat],
        }
    )


def class_rows(data: Images) -> pd.DataFrame:
    """A row a class: source (its name), images, times_smallest (images over those of the smallest class)."""
    inside = data.labels[(data.labels >= 0) & (data.labels < len(data.classes))]
    sizes = np.bincount(inside, minlength=len(data.classes))
    names = [f"class {name}" for name in data.classes]
    return pd.DataFrame({"source": names, "images": sizes, "times_smallest": sizes / max(1, sizes.min())})


def _mnist_csv(folder: Path, files: list[Path]) -> Images:
    """Rows of 28 x 28 pixels (0..255) and a label, without a header."""
    pixels, labels, sources = [], [], []
    for path in files:
        name = path.relative_to(folder).as_posix()
        values = _numbers(path, name)
        faulty = (values[:, :-1] < 0) | (values[:, :-1] > 255)
        if faulty.any():
            row, column = np.argwhere(faulty)[0]
            raise DataError(f"{name}:{row + 1}:{column + 1}: {values[row, column]} is no pixel; write 0 to 255")
        pixels.append(values[:, :-1].astype(np.uint8))
        labels.append(values[:, -1])
        sources += [f"{name}:{row}" for row in range(1, len(values) + 1)]
    images = np.concatenate(pixels).reshape(-1, 1, MNIST_SIDE, MNIST_SIDE)
    return Images(images, np.concatenate(labels), DIGITS, sources)


def _numbers(path: Path, name: str) -> npt.NDArray[np.int64]:
    """A table of whole numbers, (rows, 785)."""
    width = MNIST_SIDE**2 + 1
    try:
        table = pd.read_csv(path, header=None, low_memory=False, skip_blank_lines=False, na_filter=False)
    except pd.errors.EmptyDataError:
        raise DataError(f"{name}: empty; fetch it again") from None
    except (pd.errors.ParserError, UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: not a whole CSV file ({' '.join(str(error).split())}); fetch it again") from None
    if table.shape[1] != width:
        raise DataError(f"{name}: {table.shape[1]} columns; {width} are needed, {width - 1} pixels and the label")
    for column in (i for i, kind in enumerate(table.dtypes) if not pd.api.types.is_integer_dtype(kind)):
        cells = pd.read_csv(path, header=None, usecols=[column], dtype=str, skip_blank_lines=False, na_filter=False)
        row = int((~cells[column].str.fullmatch(r"\s*[-+]?[0-9]{1,18}\s*")).to_numpy().argmax())
        found = str(cells[column][row])[:40]
        raise DataError(f"{name}:{row + 1}:{column + 1}: {found!r} is no whole number; mend the cell")
    return table.to_numpy(np.int64)


def _image_folder(folder: Path, files: list[Path]) -> Images:
    """CLASS/NAME.jpg or .png: a folder, or one tar of one, below any folders that all images share."""
    if len(files) == 1 and files[0].name.lower().endswith(TARS):
        members = _tar_members(files[0])
    else:
        members = ((path.relative_to(folder).as_posix(), path.read_bytes()) for path in files)
    decoded = sorted(((name, _decode(name, content)) for name, content in members), key=lambda member: member[0])
    if not decoded:
        raise DataError(f"{files[0].name}: holds no images; fetch it again")
    first_name, first = decoded[0]
    top = PurePosixPath(first_name).parts[:-2]
    for name, image in decoded:
        path = PurePosixPath(name)
        if len(path.parts) < 2 or path.parts[:-2] != top:
            raise DataError(f"{name}: not in {'/'.join((*top, 'CLASS'))}/; keep one folder of class folders")
        if image.shape != first.shape:
            size, wanted = ("x".join(map(str, (*array.shape[1:], array.shape[0]))) for array in (image, first))
            raise DataError(
                f"{name}: {size} (height, width, channels) where {first_name} is {wanted}; convert all to one"
            )
    names = [PurePosixPath(name).parent.name for name, _ in decoded]
    classes = sorted(set(names))
    labels = np.array([classes.index(name) for name in names], dtype=np.int64)
    return Images(np.stack([image for _, image in decoded]), labels, classes, [name for name, _ in decoded])


def _tar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file in a tar, which is read and never unpacked: nothing in it can reach the disk."""
    seen: set[str] = set()
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = str(PurePosixPath(member.name))
                if member.isdir():
                    continue
                if not member.isreg():
                    raise DataError(f"{path.name}: {name!r} is a link or a device; pack plain files only")
                if name in seen:
                    raise DataError(f"{path.name}: {name!r} stands in it twice; pack it anew")
                seen.add(name)
                content = archive.extractfile(member)
                yield name, content.read() if content else b""
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise DataError(f"{path.name}: not a whole tar file ({reason}); fetch it again") from None


def _decode(name: str, content: bytes) -> npt.NDArray[np.uint8]:
    """A JPEG or PNG as (C, H, W)."""
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG", "PNG"]) as image:
            if image.mode not in {"L", "RGB"}:
                raise DataError(f"{name}: mode {image.mode}; convert it to grey (L) or RGB")
            pixels = np.array(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "another format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{name}: not a whole JPEG or PNG image ({reason}); mend or remove it") from None
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _cifar10(folder: Path, files: list[Path]) -> Images:
    """cifar10.safetensors as `download_images` writes it."""
    path = files[0]
    name = path.name
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise DataError(f"{name}: not a whole safetensors file ({error}); fetch it again") from None
    images, labels = tensors.get("images"), tensors.get("labels")
    if images is None or labels is None:
        raise DataError(f"{name}: keys {', '.join(sorted(tensors)) or 'none'} where images and labels are needed")
    if images.dtype != np.uint8 or images.ndim != 4 or labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        found = f"images {images.dtype} {images.shape}, labels {labels.dtype} {labels.shape}"
        raise DataError(f"{name}: {found}; needed are uint8 (N, C, H, W) and int64 (N,)")
    return Images(images, labels, CIFAR10, [f"{name}:{row}" for row in range(1, len(labels) + 1)])
