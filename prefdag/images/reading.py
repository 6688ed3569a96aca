"""Read labelled images: every source becomes one uint8 array, one label array and the names of the classes."""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from prefdag.formats.archives import tar_members, unpacked
from prefdag.formats.faults import Fault
from prefdag.formats.files import file_name, printable
from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import write_json

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
DIGITS = [str(digit) for digit in range(10)]
MNIST_SIDE = 28  # pixels
TARS = (".tar", ".tar.gz", ".tgz")


class ImageFault(NamedTuple):
    """An image that cannot be read, or that differs from the others in mode or size."""

    source: str
    fault_column: str  # content, mode or size
    fault: str  # the reason, with its remedy
    excerpt: str  # the first bytes


class Images(NamedTuple):
    """N images of one size, in a fixed order."""

    images: npt.NDArray[np.uint8]  # (N, C, H, W), C = 1 (grey) or 3 (red, green, blue)
    labels: npt.NDArray[np.int64]  # (N,), indices into classes
    classes: list[str]
    sources: list[str]  # (N,), FILE:ROW or FILE, unique
    faults: Sequence[ImageFault] = ()  # images that are not among the N


def read_images(folder: Path, source_format: str) -> Images:
    """The images in `folder`. The labels of mnist-csv and cifar10 may be out of range; the gate checks them.

    Raises:
        DataError: there are no images, or none can be read; a file is broken; a cell of mnist-csv is not a pixel; or images of
            an image-folder are not in folders of classes.
    """
    readers = {"mnist-csv": _mnist_csv, "image-folder": _image_folder, "cifar10": _cifar10}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise DataError(f"{folder}: no files; check download_images.source in params.yaml")
    return readers[source_format](folder, files)


def select(data: Images, kept: npt.NDArray[np.bool_]) -> Images:
    """The images where `kept`, bool (N,), is true, without the faults."""
    sources = [source for source, keep in zip(data.sources, kept, strict=True) if keep]
    return Images(data.images[kept], data.labels[kept], data.classes, sources)


def write_images(folder: Path, data: Images, copies: pd.DataFrame) -> None:
    """Write images.safetensors (images, labels), classes.json and rows.parquet to the new folder `folder`.

    Args:
        copies: one row per image; images with the same value in a column are copies of each other.
    """
    folder.mkdir(parents=True)
    # The library writes an array's memory as it is, which would scramble a transposed view, for example.
    tensors: dict[str, np.ndarray] = {
        "images": np.ascontiguousarray(data.images),
        "labels": np.ascontiguousarray(data.labels),
    }
    save_file(tensors, folder / "images.safetensors")
    write_json(folder / "classes.json", data.classes)
    copies.assign(source=data.sources).to_parquet(folder / "rows.parquet", index=False)


def _mnist_csv(folder: Path, files: list[Path]) -> Images:
    """Rows of 28 x 28 pixels (0..255) and a label, without a header."""
    pixels, labels, sources = [], [], []
    for path in files:
        name = file_name(path, folder)
        values = _numbers(path, name)
        faulty = (values[:, :-1] < 0) | (values[:, :-1] > 255)
        if faulty.any():
            row, column = np.argwhere(faulty)[0]
            raise DataError(f"{name}:{row + 1}:{column + 1}: {values[row, column]} is not a pixel; write 0 to 255")
        pixels.append(values[:, :-1].astype(np.uint8))
        labels.append(values[:, -1])
        sources += [f"{name}:{row}" for row in range(1, len(values) + 1)]
    images = np.concatenate(pixels).reshape(-1, 1, MNIST_SIDE, MNIST_SIDE)
    return Images(images, np.concatenate(labels), DIGITS, sources)


def _numbers(path: Path, name: str) -> npt.NDArray[np.int64]:
    """A table of integers, (rows, 785)."""
    width = MNIST_SIDE**2 + 1
    text = unpacked(path, name)
    try:
        table = pd.read_csv(io.BytesIO(text), header=None, low_memory=False, skip_blank_lines=False, na_filter=False)
    except pd.errors.EmptyDataError:
        raise DataError(f"{name}: empty; fetch it again") from None
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise DataError(f"{name}: not a complete CSV file ({' '.join(str(error).split())}); fetch it again") from None
    if table.shape[1] != width:
        raise DataError(f"{name}: {table.shape[1]} columns; {width} are needed: {width - 1} pixels and the label")
    for column in (i for i, kind in enumerate(table.dtypes) if not pd.api.types.is_integer_dtype(kind)):
        cells = pd.read_csv(
            io.BytesIO(text), header=None, usecols=[column], dtype=str, skip_blank_lines=False, na_filter=False
        )
        row = int((~cells[column].str.fullmatch(r"\s*[-+]?[0-9]{1,18}\s*")).to_numpy().argmax())
        cell = str(cells[column][row])[:40]
        raise DataError(f"{name}:{row + 1}:{column + 1}: {cell!r} is not an integer; fix the cell")
    return table.to_numpy(np.int64)


def _image_folder(folder: Path, files: list[Path]) -> Images:
    """CLASS/NAME.jpg or .png at any depth, the same for all images: in a folder, or in tars, which are pooled.

    All files are read twice, so that only the array is in memory: first the headers, to find the most common size, then the
    pixels of the images of that size.
    """
    sizes: dict[str, tuple[int, ...]] = {}
    faults: dict[str, ImageFault] = {}
    for name, image in _members(folder, files):
        try:
            sizes[name] = _size(image)
        except Fault as fault:
            faults[name] = _fault(name, image, fault)
    if not (sizes or faults):
        raise DataError(f"{files[0].name}: has no images; fetch it again")
    names = sorted(sizes | faults)
    _check_depths(names)
    usual, _ = Counter(sizes[name] for name in names if name in sizes).most_common(1)[0] if sizes else ((), 0)
    row = {name: i for i, name in enumerate(name for name in names if sizes.get(name) == usual)}
    images = np.zeros((len(row), *usual), dtype=np.uint8)
    for name, image in _members(folder, files):
        try:
            if name in row:
                images[row[name]] = _pixels(image)
            elif name in sizes:
                own, most = ("x".join(map(str, size)) for size in (sizes[name], usual))
                raise Fault("size", f"{own} (channels, height, width), but most are {most}; convert all to one size")
        except Fault as fault:
            faults[name] = _fault(name, image, fault)
    classes = sorted({PurePosixPath(name).parent.name for name in names})
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number[PurePosixPath(name).parent.name] for name in row], dtype=np.int64)
    read = np.array([name not in faults for name in row], dtype=np.bool_)
    in_order = [faults[name] for name in names if name in faults]
    if not read.any():
        first = in_order[0]
        raise DataError(
            f"{first.source}:{first.fault_column}: {first.fault} ({len(in_order) - 1} more; no image can be read)"
        )
    return select(Images(images, labels, classes, list(row)), read)._replace(faults=in_order)


def _members(folder: Path, files: list[Path]) -> Iterator[tuple[str, bytes]]:
    """The name and content of each file, or of the files in tars. With several tars, names start with the tar's name."""
    tars = [path for path in files if path.name.lower().endswith(TARS)]
    if tars and len(tars) < len(files):
        raise DataError(f"{tars[0].relative_to(folder)}: a tar among other files; use either tars or images")
    for path in files:
        name = file_name(path, folder)
        if not tars:
            yield _in_class(name), path.read_bytes()
        else:
            for member, image in tar_members(path):
                yield f"{name}/" * (len(tars) > 1) + _in_class(member), image


def _in_class(name: str) -> str:
    """`name`, if it is in a folder and can be printed on one line. Raises `DataError`."""
    if "/" not in name:
        raise DataError(f"{name}: not in a folder CLASS/; put each image into the folder of its class")
    return printable(name)


def _check_depths(names: Sequence[str]) -> None:
    """Check that all images are equally deep; cat/1.png and sub/cat/1.png together are ambiguous. Raises `DataError`."""
    usual, _ = Counter(name.count("/") for name in names).most_common(1)[0]
    for name in names:
        if name.count("/") != usual:
            raise DataError(f"{name}: not in {'*/' * (usual - 1)}CLASS/ like most images; put all at the same depth")


def _size(content: bytes) -> tuple[int, ...]:
    """(C, H, W) of a JPEG or PNG, from its header. Raises `Fault`."""
    with _opened(content) as image:
        return (len(image.getbands()), image.height, image.width)


def _pixels(content: bytes) -> npt.NDArray[np.uint8]:
    """A JPEG or PNG as (C, H, W). Raises `Fault`."""
    with _opened(content) as image:
        pixels = np.array(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


@contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    """A grey or RGB image. Raises `Fault`, also for errors while it is used."""
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG", "PNG"]) as image:
            if image.mode not in {"L", "RGB"}:
                raise Fault("mode", f"{image.mode}; convert the image to grey (L) or RGB")
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "another format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise Fault("content", f"not a complete JPEG or PNG image ({reason}); fix or remove it") from None


def _fault(name: str, content: bytes, fault: Fault) -> ImageFault:
    assert fault.column is not None
    return ImageFault(name, fault.column, fault.reason, repr(content[:20]))


def _cifar10(folder: Path, files: list[Path]) -> Images:
    """cifar10.safetensors, as `download_images` writes it."""
    path = files[0]
    name = path.name
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise DataError(f"{name}: not a complete safetensors file ({error}); fetch it again") from None
    images, labels = tensors.get("images"), tensors.get("labels")
    if images is None or labels is None:
        raise DataError(f"{name}: the keys are {', '.join(sorted(tensors)) or 'none'}; images and labels are needed")
    if images.dtype != np.uint8 or images.ndim != 4 or labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        shapes = f"images {images.dtype} {images.shape}, labels {labels.dtype} {labels.shape}"
        raise DataError(f"{name}: {shapes}; uint8 (N, C, H, W) and int64 (N,) are needed")
    return Images(images, labels, CIFAR10, [f"{name}:{row}" for row in range(1, len(labels) + 1)])
