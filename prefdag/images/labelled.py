"""What every reader of images returns: one uint8 array, one label array, the names of the classes, and notes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from prefdag.formats.files import listed

LISTED = 20  # names in the summary


class ImageFault(NamedTuple):
    """An image that cannot be read, or that differs from the others in mode or size."""

    source: str
    fault_column: str  # format, content, mode or size
    fault: str  # the reason, with its remedy
    excerpt: str  # the first bytes


@dataclass
class Notes:
    """What reading did besides reading: which files it left, and how it changed images."""

    format: str = ""
    recognised: str = ""  # what was recognised, if the format was not given
    turned: int = 0  # images turned upright, as their EXIF says
    unreadable_exif: list[str] = field(default_factory=list)  # images left as stored, since their EXIF cannot be read
    converted: Counter[str] = field(default_factory=Counter)  # number of images by what they were converted from
    not_read: list[str] = field(default_factory=list)  # tables and texts beside the images
    skipped: list[str] = field(default_factory=list)  # dot files, READMEs and the like

    def summary(self) -> dict[str, Any]:
        """The counts, and the first names of files."""
        return {
            "format": self.format,
            "turned_upright": self.turned,
            "unreadable_exif": len(self.unreadable_exif),
            "converted": dict(sorted(self.converted.items())),
            "files_not_read": {"count": len(self.not_read), "first": self.not_read[:LISTED]},
            "files_skipped": {"count": len(self.skipped), "first": self.skipped[:LISTED]},
        }

    def lines(self) -> list[str]:
        """One line for each thing that happened, for the terminal."""
        changes = ", ".join(f"{number:,} {what}" for what, number in sorted(self.converted.items()))
        notes = {
            f"format {self.format}: {self.recognised}": self.recognised,
            f"{_images(self.turned)} turned upright, as the EXIF orientation says": self.turned,
            f"EXIF that cannot be read, images kept as stored: {_named(self.unreadable_exif)}": self.unreadable_exif,
            f"converted to grey or RGB: {changes}": changes,
            f"no images, not read: {_named(self.not_read)}": self.not_read,
            f"skipped: {_named(self.skipped)}": self.skipped,
        }
        return [line for line, happened in notes.items() if happened]


class Images(NamedTuple):
    """N images of one size, in a fixed order."""

    images: npt.NDArray[np.uint8]  # (N, C, H, W), C = 1 (grey) or 3 (red, green, blue)
    labels: npt.NDArray[np.int64]  # (N,), indices into classes
    classes: list[str]
    sources: list[str]  # (N,), FILE:ROW or FILE, unique
    faults: Sequence[ImageFault] = ()  # images that are not among the N
    split: list[str] | None = None  # (N,): train, val or test, if the images were published in splits
    notes: Notes = Notes()


def select(data: Images, kept: npt.NDArray[np.bool_]) -> Images:
    """The images where `kept`, bool (N,), is true, without the faults."""
    sources, split = (
        None if column is None else [value for value, keep in zip(column, kept, strict=True) if keep]
        for column in (data.sources, data.split)
    )
    assert sources is not None
    return data._replace(images=data.images[kept], labels=data.labels[kept], sources=sources, split=split, faults=())


def _images(number: int) -> str:
    return f"{number:,} {'image' if number == 1 else 'images'}"


def _named(names: Sequence[str]) -> str:
    return listed(map(printed, names)) if names else ""


def printed(name: str) -> str:
    """A name that need not be printable, on one line."""
    return name if name.isprintable() else ascii(name)
