"""Decode one image: upright, as 8-bit grey or RGB, or a `Fault` that says why not."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from prefdag.formats.faults import Fault
from prefdag.images.kinds import FileKind, kind_of

# How to turn an image upright, by its EXIF orientation.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
GREY = {"1", "L", "LA", "La"}  # modes without colours
CONVERTED = {"1": "1-bit", "P": "palette", "PA": "palette", "CMYK": "CMYK", "YCbCr": "YCbCr", "RGBX": "RGBX"}
BITS_PER_SAMPLE = 258  # a TIFF tag


class Decoded(NamedTuple):
    """An image, upright."""

    pixels: npt.NDArray[np.uint8]  # (C, H, W), C = 1 (grey) or 3 (red, green, blue)
    turned: bool  # by its EXIF orientation
    unreadable_exif: bool  # it has EXIF that cannot be read, so it is as it was stored
    converted: str | None  # what it was converted from, if it was stored neither as grey nor as RGB

    @property
    def size(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        channels, height, width = self.pixels.shape
        return channels, height, width


class Shape(NamedTuple):
    """The size of an upright image."""

    size: tuple[int, int, int]  # (C, H, W)
    turned: bool  # by its EXIF orientation, and that changed the size


def shape(name: str, content: bytes) -> Shape:
    """The size of an image, from its header if that is enough. Raises `Fault`."""
    with _opened(name, content) as image:
        if image.mode not in {"L", "RGB"} or image.has_transparency_data:
            decoded = _decoded(image)
            _, height, width = decoded.size
            return Shape(decoded.size, decoded.turned and height != width)
        width, height = image.size
        channels = len(image.getbands())
        # Pillow swaps the size of a TIFF itself. A PNG is decoded to look for EXIF, which a square does not need.
        turn, _ = _orientation(image) if width != height else (None, False)
        quarter = turn is not None and turn not in {TURNS[2], TURNS[3], TURNS[4]}
        if quarter and image.format != "TIFF":
            width, height = height, width
        return Shape((channels, height, width), quarter)


def decode(name: str, content: bytes) -> Decoded:
    """An image's pixels, upright. Raises `Fault`."""
    with _opened(name, content) as image:
        return _decoded(image)


@contextmanager
def _opened(name: str, content: bytes) -> Iterator[Image.Image]:
    """A still image of at most 8 bits per channel. Raises `Fault`, also for errors while it is used."""
    kind = kind_of(name, content)
    if isinstance(kind, FileKind):
        raise Fault("format", f"{kind.name}; {kind.remedy}")
    if kind is None:
        raise Fault("content", "not an image; fix or remove it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a warning is about is either an error below or harmless
            with Image.open(io.BytesIO(content), formats=[kind]) as image:
                frames = getattr(image, "n_frames", 1)
                if (
                    frames > 1 and image.format != "MPO"
                ):  # a JPEG with previews, as some cameras write; its first is the photo
                    what = "pages" if kind == "TIFF" else "frames"
                    raise Fault("format", f"{kind} with {frames} {what}; save one of them as an image of its own")
                if (bits := _bits(image, content)) > 8:
                    raise Fault("mode", f"{bits} bits per channel; convert it to 8 bits")
                yield image
    except Fault:
        raise
    except Exception as error:  # the decoders raise errors of a dozen classes for broken files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Fault("content", f"not a complete {kind} image ({reason}); fix or remove it") from None


def _decoded(image: Image.Image) -> Decoded:
    if image.format == "TIFF":  # Pillow turns it upright itself as it loads it
        turn, unreadable = _orientation(image)
        image.load()
        upright = image
    else:
        image.load()  # the EXIF of a PNG may come after its pixels
        turn, unreadable = _orientation(image)
        upright = image
    plain, converted = _plain(upright)
    if turn is not None and image.format != "TIFF":
        plain = plain.transpose(turn)
    pixels = np.array(plain)
    return Decoded(
        pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), turn is not None, unreadable, converted
    )


def _orientation(image: Image.Image) -> tuple[Image.Transpose | None, bool]:
    """How to turn an image upright, and whether it has EXIF that cannot be read.

    `PIL.ImageOps.exif_transpose` also writes the EXIF back, which fails if another of its tags is broken.
    """
    with warnings.catch_warnings(record=True) as broken:
        warnings.simplefilter("always")
        try:
            value = image.getexif().get(ExifTags.Base.Orientation)
            turn = None if value is None else TURNS.get(value)
            if value is None and "exif" in image.info:
                Image.Exif().load(image.info["exif"])  # once more, since opening a JPEG hides what is wrong
        except Exception:  # a dozen classes of errors
            return None, True
    if value is None:
        return None, bool(broken)
    return turn, turn is None and value not in (0, 1)  # 0: not known


def _plain(image: Image.Image) -> tuple[Image.Image, str | None]:
    """An image as grey or RGB, and what it was if it was neither. Raises `Fault` if that would lose something."""
    mode, converted = image.mode, CONVERTED.get(image.mode)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] != 255:
            raise Fault("mode", "transparent; put it on a background and save it without transparency")
        converted = converted or "opaque alpha"
    elif mode not in {"L", "RGB", *CONVERTED}:
        raise Fault("mode", f"{mode}; convert the image to 8-bit grey or RGB")
    grey = mode in GREY
    if mode in {"P", "PA"}:
        image = image.convert("RGB")
        red, green, blue = np.array(image).transpose(2, 0, 1)
        grey = bool((red == green).all() and (green == blue).all())
    return image.convert("L" if grey else "RGB"), converted


def _bits(image: Image.Image, content: bytes) -> int:
    """The bits per channel. Pillow reads 16-bit RGB as 8-bit RGB without a word."""
    if image.mode.startswith("I;16"):
        return 16
    if image.mode in {"I", "F"}:
        return 32 if image.format == "TIFF" else 16
    if image.format == "PNG":
        return content[24]  # of the header
    if image.format == "TIFF":
        bits = image.tag_v2.get(BITS_PER_SAMPLE, 1)  # type: ignore[attr-defined]
        return max(bits) if isinstance(bits, tuple) else bits
    return 8
