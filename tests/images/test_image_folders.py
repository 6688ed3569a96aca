"""Image folders as people have them: files of other kinds are named, stray files skipped, and formats recognised."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import mnist_csv, orientation, picture, saved, write
from PIL import Image
from safetensors.numpy import save_file
from tars import tar

from prefdag.images.kinds import BY_SUFFIX, READ, FileKind, kind_of, role
from prefdag.images.reading import read_images
from prefdag.lifecycle.errors import DataError

PHOTOS = {f"{label}/{n}.jpg": picture((8, 8), kind="JPEG") for label in ("disc", "wedge") for n in range(3)}
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
WRITERS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "TIFF": "tiff", "PPM": "ppm"}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_is_read_whatever_its_name(tmp_path: Path, kind: str) -> None:
    """A WebP called .jpg is read as what it is."""
    image = Image.new("RGB", (8, 8), (200, 30, 30))
    image.putpixel((1, 2), (0, 255, 0))
    content = saved(image, kind)
    suffixes = [*WRITERS.values(), "JPG", "unknown"]
    data = read_images(write(tmp_path, {f"a/1.{suffix}": content for suffix in suffixes}), "auto")
    assert (len(data.images), len(data.faults), data.notes.format) == (len(suffixes), 0, "image-folder")
    assert (data.images == data.images[0]).all()


NAMED: dict[str, tuple[bytes, str]] = {
    "000.heic": (HEIC, "HEIC; convert it to JPEG, PNG or WebP"),
    "001.heic": (b"what a phone wrote", "HEIC; convert it to JPEG, PNG or WebP"),
    "called.jpg": (HEIC, "HEIC; convert it to JPEG, PNG or WebP"),
    "a.avif": (b"\0\0\0\x20ftypavif" + bytes(40), "AVIF; convert it to JPEG, PNG or WebP"),
    "a.jxl": (b"\xff\x0a" + bytes(9), "JPEG XL; convert"),
    "a.jp2": (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000; convert"),
    "a.svg": (b"<?xml version='1.0'?>\n<svg/>", "SVG; convert"),
    "a.psd": (b"8BPS" + bytes(9), "PSD (Photoshop); convert"),
    "a.dng": (saved(Image.new("RGB", (8, 8)), "TIFF"), "a camera's raw format; convert"),
    "a.mp4": (b"\0\0\0\x20ftypisom" + bytes(9), "a video; remove it"),
    "page.jpg": (b"\n<html><body>404</body>", "a web page; fetch the image again or remove it"),
    "pointer.png": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        "a Git LFS pointer, not the file itself",
    ),
    "a.zip": (b"PK\x03\x04" + bytes(9), "a zip archive; unpack it, or pack it again as a tar"),
    "a.npz": (b"PK\x03\x04" + bytes(9), "a zip archive"),
    "a.npy": (b"\x93NUMPY" + bytes(9), "a NumPy array; save each image as PNG"),
    "batch": (b"\x80\x04\x95" + bytes(9), "a pickle, never opened; remove it"),
    "images-idx3-ubyte": (b"\0\0\x08\x03" + bytes(9), "an IDX file, MNIST's own format"),
    "empty.jpg": (b"", "an empty file; fetch it again or remove it"),
    "what.bin": (b"\x07\x07", "not an image; fix or remove it"),
}


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", NAMED)
def test_a_file_of_another_kind_is_named(tmp_path: Path, name: str, packed: bool) -> None:
    content, reason = NAMED[name]
    files = PHOTOS | {f"disc/{name}": content}
    data = read_images(write(tmp_path, {"x.tar": tar(dict(files))} if packed else files), "auto")
    assert [fault.source for fault in data.faults] == [f"disc/{name}"]
    assert data.faults[0].fault.startswith(reason)
    assert len(data.images) == len(PHOTOS)


def test_files_that_lie_beside_images_are_skipped_and_counted(tmp_path: Path) -> None:
    stray = [
        *("README.md", "LICENSE", ".gitattributes", "disc/.DS_Store", "disc/Thumbs.db", "disc/._0.jpg"),
        *("__MACOSX/disc/._1.jpg", ".ipynb_checkpoints/0.jpg", "wedge/desktop.ini"),
    ]
    documents = ["labels.csv", "classes.txt", "disc/0.xml", "metadata.jsonl"]
    write(tmp_path, PHOTOS | dict.fromkeys(stray + documents, b"x"))
    for source_format in ("auto", "image-folder"):
        data = read_images(tmp_path, source_format)
        assert (len(data.images), data.classes, len(data.faults)) == (6, ["disc", "wedge"], 0)
        assert sorted(data.notes.skipped) == sorted(stray)
        assert sorted(data.notes.not_read) == sorted(documents)
        lines = data.notes.lines()
        assert any(line.startswith("skipped: .gitattributes, ") and line.endswith("and 4 more") for line in lines)
        assert "no images, not read: classes.txt, disc/0.xml, labels.csv, metadata.jsonl" in lines


def test_stray_files_in_a_tar_and_beside_it(tmp_path: Path) -> None:
    members = PHOTOS | {"._disc/0.jpg": b"x", "README": b"x", "labels.csv": b"x"}
    write(tmp_path, {"x.tar": tar(dict(members)), "README.md": b"x", "labels.json": b"{}"})
    data = read_images(tmp_path, "auto")
    assert len(data.images) == 6
    assert sorted(data.notes.skipped) == ["._disc/0.jpg", "README", "README.md"]
    assert sorted(data.notes.not_read) == ["labels.csv", "labels.json"]


def test_images_whose_names_begin_like_readmes_are_read(tmp_path: Path) -> None:
    names = ["plates/license_1.jpg", "plates/notice.png", "other/readme.webp", "other/1.jpg"]
    assert len(read_images(write(tmp_path, {name: picture() for name in names}), "auto").images) == 4


UNLIKE: dict[str, tuple[dict[str, bytes], str, str]] = {
    "folder-as-csv": (
        PHOTOS,
        "mnist-csv",
        r"a folder of class folders \(disc/0\.jpg\): set validate_images\.format: image-f",
    ),
    "webp-as-csv": (
        {"a/1.webp": picture(kind="WEBP")},
        "mnist-csv",
        r"a folder of class folders \(a/1\.webp\): set validate_images\.format: image-folder",
    ),
    "folder-with-labels-as-csv": (PHOTOS | {"a.csv": b"x"}, "mnist-csv", "set validate_images.format: image-folder"),
    "tar-as-csv": ({"x.tar": tar(dict(PHOTOS))}, "mnist-csv", r"a tar of class folders \(x\.tar\): set"),
    "csv-as-folder": ({"a.csv.gz": b"x"}, "image-folder", r"CSV files of pixels \(a\.csv\.gz\): set .* mnist-csv"),
    "csv-as-cifar": ({"a.csv": b"x"}, "cifar10", "CSV files of pixels"),
    "folder-as-cifar": (PHOTOS, "cifar10", "a folder of class folders"),
    "cifar-as-folder": ({"cifar10.safetensors": b"x"}, "image-folder", "set validate_images.format: cifar10"),
    "zip": ({"a.zip": b"PK\x03\x04"}, "auto", r"no known format of images, but a\.zip \(a zip archive; unpack it"),
    "text": ({"a.txt": b"hello"}, "auto", r"no known format of images, but a\.txt; docs/data\.md"),
    "only-a-readme": ({"README.md": b"hello"}, "auto", r"no files but README\.md"),
    "labels-in-a-table": (
        {"images/1.jpg": picture(), "labels.csv": b"x"},
        "auto",
        r"^labels\.csv: not read, and all images are in one folder, images; put each image into the folder of its class",
    ),
    "flat-with-a-table": (
        {"1.jpg": picture(), "labels.csv": b"x"},
        "auto",
        r"^1\.jpg: not in a folder CLASS/; put each image into the folder of its class \(labels\.csv is not read\)",
    ),
    "archive-beside": (PHOTOS | {"all.zip": b"PK\x03\x04"}, "auto", r"^all\.zip: a zip archive; unpack it"),
    "two-of-cifar": ({"a.safetensors": b"x", "b.safetensors": b"x"}, "auto", r"^b\.safetensors: beside a\.safetensors"),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_what_is_there_is_said_if_it_is_not_what_was_asked_for(tmp_path: Path, case: str) -> None:
    files, source_format, line = UNLIKE[case]
    with pytest.raises(DataError, match=line) as error:
        read_images(write(tmp_path, files), source_format)
    assert "\n" not in str(error.value)
    assert "not a complete CSV" not in str(error.value)


def test_every_format_is_recognised(tmp_path: Path) -> None:
    write(tmp_path / "csv", {"a.csv.gz": gzip.compress(mnist_csv([3, 1])), "README.md": b"x", "names.txt": b"x"})
    write(tmp_path / "folder", PHOTOS)
    write(tmp_path / "tar", {"x.tar.gz": tar(dict(PHOTOS), "w:gz")})
    (tmp_path / "cifar").mkdir()
    save_file(
        {"images": np.zeros((2, 3, 32, 32), np.uint8), "labels": np.zeros(2, np.int64)},
        tmp_path / "cifar/cifar10.safetensors",
    )
    for name, expected, what in (
        ("csv", "mnist-csv", "CSV files of pixels (a.csv.gz)"),
        ("folder", "image-folder", "a folder of class folders (disc/0.jpg)"),
        ("tar", "image-folder", "a tar of class folders (x.tar.gz)"),
        ("cifar", "cifar10", "CIFAR-10 as safetensors (cifar10.safetensors)"),
    ):
        found, given_format = (read_images(tmp_path / name, source_format) for source_format in ("auto", expected))
        assert found.notes.format == expected
        assert f"format {expected}: {what}" in found.notes.lines()
        np.testing.assert_array_equal(found.images, given_format.images)
        assert not given_format.notes.recognised


def test_grey_and_coloured_images_become_alike_without_loss(tmp_path: Path) -> None:
    """The most common kind decides, and no colour is lost."""
    grey, coloured = picture(mode="L"), picture()
    as_rgb = saved(Image.open(write(tmp_path, {"x.png": grey}) / "x.png").convert("RGB"))
    files = {"a/1.png": coloured, "a/2.png": coloured, "a/3.png": grey}
    data = read_images(write(tmp_path / "rgb", files), "auto")
    assert (data.images.shape, dict(data.notes.converted)) == ((3, 3, 3, 4), {"grey among RGB": 1})
    assert (data.images[2] == data.images[2][:1]).all()
    files = {"a/0.png": grey, "a/1.png": grey, "a/2.png": grey, "a/3.png": as_rgb, "a/4.png": coloured}
    data = read_images(write(tmp_path / "grey", files), "auto")
    assert (data.images.shape, dict(data.notes.converted)) == ((4, 1, 3, 4), {"RGB without colours among grey": 1})
    assert (data.images == data.images[0]).all()
    assert [(fault.source, fault.fault_column) for fault in data.faults] == [("a/4.png", "size")]


def test_turned_images_are_counted_and_of_their_upright_size(tmp_path: Path) -> None:
    files = {"a/1.png": picture((6, 4)), "a/2.png": picture((4, 6), exif=orientation(6)), "b/1.png": picture((6, 4))}
    files["b/2.jpg"] = picture((6, 4), kind="JPEG", exif=b"Exif\0\0rubbish")
    data = read_images(write(tmp_path, files), "auto")
    assert (data.images.shape, data.notes.turned, data.faults) == ((4, 3, 4, 6), 1, [])
    assert data.notes.unreadable_exif == ["b/2.jpg"]
    lines = data.notes.lines()
    assert "1 image turned upright, as the EXIF orientation says" in lines
    assert "EXIF that cannot be read, images kept as stored: b/2.jpg" in lines


@given(st.sampled_from([*BY_SUFFIX, *(s for suffixes in READ.values() for s in suffixes), ""]), st.binary(max_size=40))
def test_every_file_has_a_role_and_a_kind(suffix: str, content: bytes) -> None:
    name = f"a/b{suffix}"
    assert role(name) == "image"
    kind = kind_of(name, content)
    assert kind is None or kind in READ or isinstance(kind, FileKind)
