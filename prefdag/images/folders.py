"""Read a folder of class folders, or tars of them: CLASS/NAME.jpg at any depth, the same for all images."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from prefdag.formats.archives import tar_members
from prefdag.formats.faults import Fault
from prefdag.formats.files import printable
from prefdag.images.decoding import Decoded, Shape, decode, shape
from prefdag.images.kinds import TARS, role
from prefdag.images.labelled import ImageFault, Images, Notes, select
from prefdag.images.published import splits_of_folders
from prefdag.lifecycle.errors import DataError
from prefdag.lifecycle.progress import tracked

Size = tuple[int, int, int]  # (C, H, W)
TO_FOLDERS = "put each image into the folder of its class"


def read_folder(folder: Path, files: list[Path], notes: Notes) -> Images:
    """The images of `files`, or of the tars among them, which are pooled. What was done besides is added to `notes`.

    All files are read twice, so that only the array is in memory: first the headers, to find the most common size, then the
    pixels of the images of that size. If most images are RGB, grey ones become RGB; if most are grey, RGB ones without colours
    become grey.

    Raises:
        DataError: there are no images, or none can be read; they are not in folders of classes, or not equally deep; or the
            names of published splits are unclear.
    """
    shapes: dict[str, Shape] = {}
    faults: dict[str, ImageFault] = {}
    for name, image in tracked(_members(folder, files, notes), "image", "headers"):
        try:
            shapes[name] = shape(name, image)
        except Fault as fault:
            faults[name] = _fault(name, image, fault)
    if not (shapes or faults):
        besides = f" but {', '.join(notes.not_read[:5])}" if notes.not_read else ""
        raise DataError(f"{files[0].name}: has no images{besides}; fetch it again")
    names = sorted(shapes | faults)
    tars = [path.name for path in files if path.name.lower().endswith(TARS)]
    _check_places(names, len(tars) > 1, faults, notes)
    usual = _usual_size(shapes)
    row = {
        name: i
        for i, name in enumerate(name for name in names if name in shapes and shapes[name].size[1:] == usual[1:])
    }
    images = np.zeros((len(row), *usual), dtype=np.uint8)
    for name, image in tracked(_members(folder, files), "image", "pixels", len(names)):
        try:
            if name in row:
                decoded = decode(name, image)
                images[row[name]], change = _alike(decoded, usual)
                notes.turned += decoded.turned
                notes.unreadable_exif += [name] * decoded.unreadable_exif
                notes.converted.update(change for change in (decoded.converted, change) if change)
            elif name in shapes:
                raise _other_size(shapes[name], usual)
        except Fault as fault:
            faults[name] = _fault(name, image, fault)
    in_order = [faults[name] for name in names if name in faults]
    classes = sorted({PurePosixPath(name).parent.name for name in names})
    if len(classes) == 1 and notes.not_read:
        raise DataError(f"{notes.not_read[0]}: not read, and all images are in one folder, {classes[0]}; {TO_FOLDERS}")
    split_of = _published(names, tars)
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number[PurePosixPath(name).parent.name] for name in row], dtype=np.int64)
    read = np.array([name not in faults for name in row], dtype=np.bool_)
    if not read.any():
        first = in_order[0]
        raise DataError(
            f"{first.source}:{first.fault_column}: {first.fault} ({len(in_order) - 1} more; no image can be read)"
        )
    split = [split_of[name] for name in row] if split_of else None
    return select(Images(images, labels, classes, list(row), split=split, notes=notes), read)._replace(faults=in_order)


def _members(folder: Path, files: list[Path], notes: Notes | None = None) -> Iterator[tuple[str, bytes]]:
    """The name and content of each file, or of the files in tars. With several tars, names start with the tar's name.

    Tables, texts, READMEs and the like are left out, and added to `notes`.
    """
    tars = [path for path in files if path.name.lower().endswith(TARS)]
    others = [path for path in files if path not in tars and role(path.relative_to(folder).as_posix()) == "image"]
    if tars and others:
        raise DataError(f"{tars[0].relative_to(folder)}: a tar among other files; use either tars or images")
    for path in files:
        members = tar_members(path) if path in tars else [("", b"")]
        for member, content in members:
            name = path.relative_to(folder).as_posix()
            if path in tars:
                name = f"{name}/" * (len(tars) > 1) + member
            part = role(name)
            if part == "image":
                yield printable(name), content if path in tars else path.read_bytes()
            elif notes is not None:
                (notes.skipped if part == "skipped" else notes.not_read).append(name)


def _check_places(names: Sequence[str], in_tars: bool, faults: Mapping[str, ImageFault], notes: Notes) -> None:
    """Check that all images are in folders, and equally deep; cat/1.png and sub/cat/1.png are ambiguous. Raises `DataError`.

    Args:
        in_tars: the names start with that of a tar, which is no class.
    """
    usual, _ = Counter(name.count("/") for name in names).most_common(1)[0]
    for name in names:
        flat = name.count("/") == in_tars
        if flat or name.count("/") != usual:
            if name in faults and faults[name].fault_column in {"format", "content"}:
                raise DataError(f"{name}: {faults[name].fault}")  # it may be no image at all
            if flat:
                table = f" ({notes.not_read[0]} is not read)" if notes.not_read else ""
                raise DataError(f"{name}: not in a folder CLASS/; {TO_FOLDERS}{table}")
            raise DataError(f"{name}: not in {'*/' * (usual - 1)}CLASS/ like most images; put all at the same depth")


def _published(names: Sequence[str], tars: Sequence[str]) -> dict[str, str] | None:
    """The published split of each image by name, None without one. A single tar names a split too."""
    above = f"{tars[0]}/" if len(tars) == 1 else ""
    splits = splits_of_folders([above + name for name in names])
    return dict(zip(names, splits, strict=True)) if splits else None


def _usual_size(shapes: Mapping[str, Shape]) -> Size:
    """The most common size; of two equally common ones, that with more channels."""
    sizes = Counter(shape.size for shape in shapes.values())
    return max(sizes, key=lambda size: (sizes[size], size[0]), default=(1, 0, 0))


def _alike(decoded: Decoded, usual: Size) -> tuple[npt.NDArray[np.uint8], str | None]:
    """An image's pixels with the usual channels, and what was changed. Raises `Fault` if that would lose colours."""
    pixels = decoded.pixels
    if decoded.size == usual:
        return pixels, None
    if decoded.size[1:] == usual[1:] and len(pixels) == 1:
        return np.broadcast_to(pixels, usual), "grey among RGB"
    if decoded.size[1:] == usual[1:] and (pixels == pixels[0]).all():
        return pixels[:1], "RGB without colours among grey"
    raise _other_size(Shape(decoded.size, decoded.turned), usual)


def _other_size(shape: Shape, usual: Size) -> Fault:
    own, most = ("x".join(map(str, size)) for size in (shape.size, usual))
    upright = ", upright by its EXIF orientation" if shape.turned else ""
    return Fault("size", f"{own} (channels, height, width{upright}), but most are {most}; convert all to one size")


def _fault(name: str, content: bytes, fault: Fault) -> ImageFault:
    assert fault.column is not None
    return ImageFault(name, fault.column, fault.reason, repr(content[:20]))
