"""Images of every format are decoded upright; modes and formats are converted without loss, or named; nothing crashes."""

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import orientation, picture, rng, saved
from PIL import ExifTags, Image, ImageOps

from prefdag.formats.faults import Fault
from prefdag.images.decoding import TURNS, decode, shape

LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "WEBP": {"lossless": True, "exact": True}, "TIFF": {}}
WRITERS = LOSSLESS | {"JPEG": {"quality": 100, "subsampling": 0}}
STORED = {  # what a camera stores of an upright image, by the orientation it then writes: the inverse of how it is turned
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """An image without symmetry that JPEG changes little."""
    y, x = np.mgrid[:height, :width]
    red, green = 255 * x / width, 255 * y / height
    blue = np.full((height, width), 40.0 * (seed % 6))
    return Image.fromarray(np.stack([red, green, blue], axis=2).astype(np.uint8))


def channels_first(image: Image.Image) -> np.ndarray:
    pixels = np.array(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


@pytest.mark.slow
@given(
    st.sampled_from(sorted(WRITERS)),
    st.integers(1, 8),
    st.integers(2, 40),
    st.integers(2, 40),
    st.sampled_from(["RGB", "L"]),
)
@settings(max_examples=150)
def test_a_photograph_is_as_it_was_taken(kind: str, value: int, width: int, height: int, mode: str) -> None:
    taken = smooth(width, height).convert(mode)
    stored = taken.transpose(STORED[value]) if value > 1 else taken
    content = saved(stored, kind, exif=orientation(value), **WRITERS[kind])
    image = decode("a.jpg", content)
    upright = channels_first(taken)
    assert image.pixels.shape == shape("a.jpg", content).size == upright.shape or (kind, mode) == ("WEBP", "L")
    assert np.abs(image.pixels.astype(int) - upright).max() <= (8 if kind == "JPEG" else 0)
    assert (image.turned, image.unreadable_exif) == (value > 1, False)


@pytest.mark.slow
@given(st.sampled_from(sorted(WRITERS)), st.integers(1, 8), st.integers(2, 20), st.integers(2, 20))
@settings(max_examples=60)
def test_it_is_what_pillow_makes_of_it(kind: str, value: int, width: int, height: int) -> None:
    content = picture((width, height), kind=kind, exif=orientation(value), **WRITERS[kind])
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(decode("a", content).pixels, channels_first(expected.convert("RGB")))


def test_pixels_as_stored_would_be_wrong() -> None:
    """The tests above can fail: without the orientation, pixels and size are others."""
    content = saved(smooth(6, 4).transpose(STORED[6]), exif=orientation(6))
    assert Image.open(io.BytesIO(content)).size == (4, 6)
    assert decode("a", content).pixels.shape == (3, 4, 6)


def test_an_orientation_in_xmp_or_after_the_pixels_counts() -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    jpeg = saved(smooth(6, 4), "JPEG", xmp=xmp)
    assert (shape("a", jpeg).size, decode("a", jpeg).turned) == ((3, 6, 4), True)
    png = saved(smooth(6, 4), exif=orientation(8))
    start = png.index(b"eXIf") - 4
    length = struct.unpack(">I", png[start : start + 4])[0] + 12
    end = png.index(b"IEND") - 4
    last = png[:start] + png[start + length : end] + png[start : start + length] + png[end:]
    assert last.index(b"eXIf") > last.index(b"IDAT")
    assert (shape("a", last).size, decode("a", last).turned) == ((3, 6, 4), True)


@pytest.mark.parametrize(("value", "unreadable"), [(0, False), (1, False), (9, True), (77, True)])
def test_an_orientation_that_means_nothing_is_noted(value: int, unreadable: bool) -> None:
    image = smooth(6, 4)
    decoded = decode("a", saved(image, exif=orientation(value)))
    np.testing.assert_array_equal(decoded.pixels, channels_first(image))
    assert (decoded.turned, decoded.unreadable_exif) == (False, unreadable)


def test_an_orientation_beside_a_broken_tag_counts() -> None:
    """Pillow's own function stops here, since it writes the other tags back."""
    tags = struct.pack("<HHII", ExifTags.Base.Orientation, 3, 1, 6) + struct.pack("<HHII", 0x8769, 4, 1, 9999)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tags + b"\0\0\0\0"
    decoded = decode("a", saved(smooth(6, 4), "JPEG", exif=exif))
    assert (decoded.pixels.shape, decoded.turned) == ((3, 6, 4), True)


BROKEN_EXIF = st.binary(max_size=80) | st.builds(
    lambda count, rest: b"II*\0\x08\0\0\0" + struct.pack("<H", count) + rest,
    st.integers(0, 65535),
    st.binary(max_size=80),
)


@pytest.mark.slow
@given(st.sampled_from(["JPEG", "PNG", "WEBP"]), BROKEN_EXIF)
@settings(max_examples=200)
def test_random_bytes_as_exif_leave_the_image_as_stored(kind: str, exif: bytes) -> None:
    image = smooth(5, 5)  # a square, whichever way it is turned
    plain = decode("a", saved(image, kind, **WRITERS[kind])).pixels
    content = saved(image, kind, exif=b"Exif\0\0" + exif, **WRITERS[kind])
    decoded = decode("a", content)
    assert shape("a", content).size == (3, 5, 5)
    if not decoded.turned:
        np.testing.assert_array_equal(decoded.pixels, plain)


def test_exif_that_cannot_be_read_is_noted() -> None:
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(20)):
        assert decode("a", saved(smooth(5, 5), "JPEG", exif=exif)).unreadable_exif
    assert not decode("a", saved(smooth(5, 5), "JPEG")).unreadable_exif


@pytest.mark.slow
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"]), st.data())
@settings(max_examples=300)
def test_a_damaged_file_is_an_image_or_a_fault(kind: str, data: st.DataObject) -> None:
    content = bytearray(saved(smooth(7, 5), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    for read in (shape, decode):
        with contextlib.suppress(Fault):
            read("a.png", damaged)


def transparent(mode: str, alpha: int) -> Image.Image:
    """An image of which one pixel has this alpha, all others 255."""
    image = smooth(6, 4).convert("L" if mode == "LA" else "RGB")
    mask = Image.new("L", image.size, 255)
    mask.putpixel((2, 2), alpha)
    image.putalpha(mask)
    return image


def with_palette(grey: bool = False) -> Image.Image:
    image = smooth(6, 4)
    return (image.convert("L").convert("P") if grey else image.quantize(16)).copy()


CMYK = smooth(6, 4).convert("CMYK")
BITS = Image.fromarray(rng.integers(0, 2, (4, 6)).astype(bool))
READ: dict[str, tuple[bytes, Image.Image, str | None]] = {
    "RGB": (saved(smooth(6, 4)), smooth(6, 4), None),
    "grey": (saved(smooth(6, 4).convert("L")), smooth(6, 4).convert("L"), None),
    "palette": (saved(with_palette()), with_palette().convert("RGB"), "palette"),
    "grey palette": (saved(with_palette(grey=True)), smooth(6, 4).convert("L"), "palette"),
    "palette, opaque": (saved(with_palette(), transparency=b"\xff" * 16), with_palette().convert("RGB"), "palette"),
    "palette, a colour that no pixel has": (
        saved(with_palette(), transparency=200, bits=8),
        with_palette().convert("RGB"),
        "palette",
    ),
    "GIF": (saved(with_palette(), "GIF"), with_palette().convert("RGB"), "palette"),
    "1-bit": (saved(BITS), BITS.convert("L"), "1-bit"),
    "RGBA, opaque": (saved(transparent("RGBA", 255)), smooth(6, 4), "opaque alpha"),
    "LA, opaque": (saved(transparent("LA", 255)), smooth(6, 4).convert("L"), "opaque alpha"),
    "WebP with opaque alpha": (saved(transparent("RGBA", 255), "WEBP", lossless=True), smooth(6, 4), None),
    "CMYK": (saved(CMYK, "TIFF"), CMYK.convert("RGB"), "CMYK"),
    "BMP": (saved(smooth(6, 4), "BMP"), smooth(6, 4), None),
    "PPM": (saved(smooth(6, 4), "PPM"), smooth(6, 4), None),
    "PGM": (saved(smooth(6, 4).convert("L"), "PPM"), smooth(6, 4).convert("L"), None),
    "RGB, a transparent colour that no pixel has": (
        saved(smooth(6, 4), transparency=(1, 2, 3)),
        smooth(6, 4),
        "opaque alpha",
    ),
}


@pytest.mark.parametrize("kind", READ)
def test_a_mode_that_loses_nothing_is_converted_and_counted(kind: str) -> None:
    content, expected, converted = READ[kind]
    decoded = decode("a", content)
    np.testing.assert_array_equal(decoded.pixels, channels_first(expected))
    assert shape("a", content).size == decoded.size
    assert decoded.converted == converted


def test_cmyk_jpegs_are_converted_as_pillow_does() -> None:
    content = saved(CMYK, "JPEG", quality=95)
    expected = Image.open(io.BytesIO(content)).convert("RGB")
    np.testing.assert_array_equal(decode("a", content).pixels, channels_first(expected))


def deep_png() -> bytes:
    """An RGB image of 16 bits per channel, which Pillow reads as 8 bits but does not write."""
    signature = saved(smooth(6, 4))[:8]
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 6, 4, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress((b"\0" + bytes(range(36))) * 4)),
        (b"IEND", b""),
    ]
    return signature + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def frames(kind: str) -> bytes:
    return saved(smooth(6, 4), kind, save_all=True, append_images=[smooth(6, 4, seed=3), smooth(6, 4, seed=5)])


REFUSED: dict[str, tuple[bytes, str, str]] = {
    "RGBA": (saved(transparent("RGBA", 200)), "mode", "transparent; put it on a background"),
    "LA": (saved(transparent("LA", 0)), "mode", "transparent"),
    "palette": (saved(with_palette(), transparency=0), "mode", "transparent"),
    "GIF": (saved(with_palette(), "GIF", transparency=int(with_palette().getpixel((0, 0)))), "mode", "transparent"),
    "WebP": (saved(transparent("RGBA", 100), "WEBP", lossless=True), "mode", "transparent"),
    "a transparent colour": (saved(smooth(6, 4), transparency=(0, 0, 0)), "mode", "transparent"),
    "16-bit grey": (
        saved(smooth(6, 4).convert("L").convert("I;16")),
        "mode",
        "16 bits per channel; convert it to 8 bits",
    ),
    "16-bit RGB": (deep_png(), "mode", "16 bits per channel"),
    "16-bit TIFF": (saved(smooth(6, 4).convert("L").convert("I;16"), "TIFF"), "mode", "16 bits per channel"),
    "float TIFF": (saved(smooth(6, 4).convert("F"), "TIFF"), "mode", "32 bits per channel"),
    "Lab TIFF": (saved(Image.new("LAB", (4, 3)), "TIFF"), "mode", "LAB; convert the image to 8-bit grey or RGB"),
    "animated GIF": (frames("GIF"), "format", "GIF with 3 frames; save one of them as an image of its own"),
    "animated WebP": (frames("WEBP"), "format", "WEBP with 3 frames"),
    "animated PNG": (frames("PNG"), "format", "PNG with 3 frames"),
    "pages": (frames("TIFF"), "format", "TIFF with 3 pages"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_mode_that_would_lose_something_is_refused_by_name(kind: str) -> None:
    content, column, reason = REFUSED[kind]
    for read in (shape, decode):
        with pytest.raises(Fault) as fault:
            read("a", content)
        assert (fault.value.column, fault.value.reason[: len(reason)]) == (column, reason)


def test_a_photograph_with_a_preview_is_its_first_picture() -> None:
    content = saved(smooth(6, 4), "MPO", save_all=True, append_images=[smooth(3, 2)], quality=100, subsampling=0)
    assert decode("a.jpg", content).pixels.shape == (3, 4, 6)


def test_every_orientation_has_a_turn() -> None:
    assert set(TURNS) == set(range(2, 9))
