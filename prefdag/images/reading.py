"""Read labelled images of any format: recognise it, and make one uint8 array, one label array and the names of the classes."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from prefdag.formats.archives import unpacked
from prefdag.formats.files import file_name, listed
from prefdag.images.folders import read_folder
from prefdag.images.kinds import TARS, FileKind, has_image_suffix, kind_of, role
from prefdag.images.labelled import Images, Notes, printed
from prefdag.images.published import splits_of_files
from prefdag.lifecycle.errors import DataError
from prefdag.recorded import recorded
from prefdag.runtime.artifacts import write_json

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR10_TRAIN = 50_000  # the first images are the published train set, the others the test set
DIGITS = [str(digit) for digit in range(10)]
MNIST_SIDE = 28  # pixels
CSV = (".csv", ".csv.gz")


class Recognised(NamedTuple):
    """What the files of a folder look like."""

    format: str | None  # a value of validate_images.format, None if it is no known one
    what: str  # with the name of a file


def read_images(folder: Path, source_format: str) -> Images:
    """The images in `folder`. The labels of mnist-csv and cifar10 may be out of range; the gate checks them.

    Args:
        source_format: mnist-csv, image-folder, cifar10, or auto: by the files.

    Raises:
        DataError: the images are of another format, or of none; there are none, or none can be read; a file is broken; a cell
            of mnist-csv is not a pixel; or images of an image-folder are not in folders of classes.
    """
    names = {
        path.relative_to(folder).as_posix(): path for path in sorted(recorded(folder).rglob("*")) if path.is_file()
    }
    notes = Notes(skipped=[name for name in names if role(name) == "skipped"])
    files = {name: path for name, path in names.items() if role(name) != "skipped"}
    if not files:
        only = f" but {listed(map(printed, notes.skipped))}" if notes.skipped else ""
        raise DataError(f"{folder}: no files{only}; check download_images.source in params.yaml")
    there = recognise(files)
    if source_format == "auto":
        if there.format is None:
            raise DataError(f"{folder}: no known format of images, but {there.what}; docs/data.md lists the formats")
        notes.recognised = there.what
    elif there.format not in {None, source_format}:
        raise DataError(f"{folder}: {there.what}: set validate_images.format: {there.format} in params.yaml")
    notes.format = there.format or source_format
    readers = {"mnist-csv": _mnist_csv, "image-folder": read_folder, "cifar10": _cifar10}
    return readers[notes.format](folder, list(files.values()), notes)


def recognise(files: Mapping[str, Path]) -> Recognised:
    """The format of files by name, none of them a README or the like. Images count most, CSV files beside them least."""
    for name, path in files.items():
        if name.lower().endswith(TARS):
            return Recognised("image-folder", f"a tar of class folders ({printed(name)})")
        if has_image_suffix(name) or (role(name) == "image" and isinstance(kind_of(name, _start(path)), str)):
            return Recognised("image-folder", f"a folder of class folders ({printed(name)})")
    for known, suffixes, what in (
        ("cifar10", (".safetensors",), "CIFAR-10 as safetensors"),
        ("mnist-csv", CSV, "CSV files of pixels"),
    ):
        if found := [name for name in files if name.lower().endswith(suffixes)]:
            return Recognised(known, f"{what} ({printed(found[0])})")
    name, path = next(iter(files.items()))
    kind = kind_of(name, _start(path))
    return Recognised(None, f"{printed(name)}{f' ({kind.name}; {kind.remedy})' if isinstance(kind, FileKind) else ''}")


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)


def write_images(folder: Path, data: Images, copies: pd.DataFrame) -> None:
    """Write images.safetensors (images, labels), classes.json and rows.parquet to the new folder `folder`.

    rows.parquet has a column `split` if the images were published in splits.

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
    rows = copies.assign(source=data.sources)
    if data.split is not None:
        rows["split"] = data.split
    rows.to_parquet(folder / "rows.parquet", index=False)


def _mnist_csv(folder: Path, files: list[Path], notes: Notes) -> Images:
    """Rows of 28 x 28 pixels (0..255) and a label, without a header."""
    names = {file_name(path, folder): path for path in files}
    if any(name.lower().endswith(CSV) for name in names):
        notes.not_read += [name for name in names if role(name) == "document" and not name.lower().endswith(CSV)]
    names = {name: path for name, path in names.items() if name not in notes.not_read}
    pixels, labels, sources, split = [], [], [], []
    splits = splits_of_files(list(names))
    for i, (name, path) in enumerate(names.items()):
        values = _numbers(path, name)
        faulty = (values[:, :-1] < 0) | (values[:, :-1] > 255)
        if faulty.any():
            row, column = np.argwhere(faulty)[0]
            raise DataError(f"{name}:{row + 1}:{column + 1}: {values[row, column]} is not a pixel; write 0 to 255")
        pixels.append(values[:, :-1].astype(np.uint8))
        labels.append(values[:, -1])
        sources += [f"{name}:{row}" for row in range(1, len(values) + 1)]
        split += [splits[i]] * len(values) if splits else []
    images = np.concatenate(pixels).reshape(-1, 1, MNIST_SIDE, MNIST_SIDE)
    return Images(images, np.concatenate(labels), DIGITS, sources, split=split or None, notes=notes)


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


def _cifar10(folder: Path, files: list[Path], notes: Notes) -> Images:
    """cifar10.safetensors, as `download_images` writes it."""
    path = files[0]
    name = path.name
    if len(files) > 1:
        raise DataError(f"{files[1].relative_to(folder)}: beside {name}, which has all images; remove it")
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
    sources = [f"{name}:{row}" for row in range(1, len(labels) + 1)]
    split = ["train" if row < CIFAR10_TRAIN else "test" for row in range(len(labels))]
    return Images(images, labels, CIFAR10, sources, split=split if "test" in split else None, notes=notes)
