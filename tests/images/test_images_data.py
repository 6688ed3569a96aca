"""Images from every source become the same arrays; a broken one is reported in one line that names it."""

import gzip
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import cifar10_tars, mnist_csv, orientation, picture, rng, write, write_cifar10_tars
from PIL import Image
from safetensors.numpy import load_file, save_file
from tars import tar

from prefdag.images.labelled import Images
from prefdag.images.reading import CIFAR10, DIGITS, read_images, write_images
from prefdag.lifecycle.errors import DataError


def test_mnist_csv(tmp_path: Path) -> None:
    content = mnist_csv([3, 0, 9])
    data = read_images(write(tmp_path, {"a.csv.gz": gzip.compress(content)}), "mnist-csv")
    table = np.loadtxt(io.BytesIO(content), delimiter=",", dtype=np.int64)
    assert data.images.dtype == np.uint8
    assert data.labels.dtype == np.int64
    np.testing.assert_array_equal(data.images, table[:, :-1].reshape(3, 1, 28, 28))
    assert (data.labels.tolist(), data.classes) == ([3, 0, 9], DIGITS)
    assert data.sources == ["a.csv.gz:1", "a.csv.gz:2", "a.csv.gz:3"]


@pytest.mark.parametrize("top", ["", "train/"])
def test_image_folder_and_its_tar_are_the_same(tmp_path: Path, top: str) -> None:
    files = {f"{top}{name}": picture() for name in ("dog/b.png", "cat/z.PNG", "dog/a.png", "cat/b.png")}
    folder = read_images(write(tmp_path / "folder", files), "image-folder")
    packed = read_images(write(tmp_path / "tar", {"x.tar": tar(dict(files))}), "image-folder")
    for from_folder, from_tar in zip(folder, packed, strict=True):
        np.testing.assert_array_equal(from_folder, from_tar)
    assert folder.sources == [f"{top}{name}" for name in ("cat/b.png", "cat/z.PNG", "dog/a.png", "dog/b.png")]
    assert (folder.labels.tolist(), folder.classes) == ([0, 0, 1, 1], ["cat", "dog"])
    assert folder.images.shape == (4, 3, 3, 4)
    pixels = np.array(Image.open(io.BytesIO(files[f"{top}dog/a.png"])))
    np.testing.assert_array_equal(folder.images[2], pixels.transpose(2, 0, 1))


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    files = {"a/1.png": picture(mode="L"), "b/1.png": picture(mode="L")}
    assert read_images(write(tmp_path, files), "image-folder").images.shape == (2, 1, 3, 4)


def test_cifar10(tmp_path: Path) -> None:
    images, labels = rng.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8), np.array([0, 9, 1, 1])
    save_file({"images": images, "labels": labels}, tmp_path / "cifar10.safetensors")
    data = read_images(tmp_path, "cifar10")
    np.testing.assert_array_equal(data.images, images)
    assert (data.labels.tolist(), data.classes, data.sources[3]) == ([0, 9, 1, 1], CIFAR10, "cifar10.safetensors:4")


def set_cell(row: int, column: int, value: str) -> Callable[[list[list[str]]], None]:
    def edit(rows: list[list[str]]) -> None:
        rows[row][column] = value

    return edit


BAD_CSV = {
    "text": (mnist_csv([1, 2], set_cell(1, 5, "x")), "a.csv:2:6: 'x' is not an integer"),
    "empty": (mnist_csv([1, 2], set_cell(1, 0, "")), "a.csv:2:1: '' is not an integer"),
    "fraction": (mnist_csv([1, 2], set_cell(0, 7, "0.5")), "a.csv:1:8: '0.5' is not an integer"),
    "nan": (mnist_csv([1, 2], set_cell(0, 784, "nan")), "a.csv:1:785: 'nan' is not an integer"),
    "infinite": (mnist_csv([1, 2], set_cell(1, 7, "inf")), "a.csv:2:8: 'inf' is not an integer"),
    "huge": (mnist_csv([1, 2], set_cell(1, 7, "9" * 30)), "a.csv:2:8: "),
    "bright": (mnist_csv([1, 2], set_cell(1, 7, "256")), "a.csv:2:8: 256 is not a pixel"),
    "negative": (mnist_csv([1, 2], set_cell(1, 7, "-1")), "a.csv:2:8: -1 is not a pixel"),
    "short-row": (mnist_csv([1, 2], lambda rows: rows[1].pop()), "a.csv:2:785: '' is not an integer"),
    "long-row": (mnist_csv([1, 2], lambda rows: rows[1].append("1")), "a.csv: not a complete CSV file"),
    "narrow": (b"1,2,3\n", "a.csv: 3 columns; 785 are needed"),
    "no-rows": (b"", "a.csv: empty"),
    "bytes": (b"\xff\x00", "a.csv: not a complete CSV file"),
}


@pytest.mark.parametrize("kind", BAD_CSV)
def test_malformed_mnist_csv_is_a_one_line_error(tmp_path: Path, kind: str) -> None:
    content, line = BAD_CSV[kind]
    with pytest.raises(DataError) as error:
        read_images(write(tmp_path, {"a.csv": content}), "mnist-csv")
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_truncated_gzip_is_a_one_line_error(tmp_path: Path) -> None:
    write(tmp_path, {"a.csv.gz": gzip.compress(mnist_csv([1, 2]))[:-40]})
    with pytest.raises(DataError, match=r"^a\.csv\.gz: not a complete gzip file"):
        read_images(tmp_path, "mnist-csv")


@pytest.mark.parametrize(
    ("tops", "split"), [(("one", "two"), None), (("test", "train"), ["test", "test", "train", "train"])]
)
def test_several_tars_or_top_folders_are_pooled(tmp_path: Path, tops: tuple[str, str], split: list[str] | None) -> None:
    """The same name may be in both tars: sources start with the name of the tar. Published splits are told apart."""
    names = ("a/1.png", "b/1.png")
    write(tmp_path / "tars", {f"{top}.tar": tar({name: picture() for name in names}) for top in tops})
    write(tmp_path / "tops", {f"{top}/{name}": picture() for name in names for top in tops})
    for folder, suffix in (("tars", ".tar"), ("tops", "")):
        data = read_images(tmp_path / folder, "image-folder")
        assert data.sources == [f"{top}{suffix}/{name}" for top in tops for name in names]
        assert (data.labels.tolist(), data.classes, data.split) == ([0, 1, 0, 1], ["a", "b"], split)


GOOD = {"c/1.png": picture(), "c/3.png": picture()}
FAULTY: dict[str, tuple[bytes, str, str]] = {
    "web-page": (b"<!DOCTYPE html>", "format", "a web page; fetch the image again or remove it"),
    "random": (b"\x07\x01\x02", "content", "not an image; fix or remove it"),
    "empty": (b"", "format", "an empty file; fetch it again or remove it"),
    "truncated": (picture((64, 64))[:-500], "size", "3x64x64 (channels, height, width), but most are 3x3x4"),
    "broken": (picture()[:-25], "content", "not a complete PNG image ("),
    "other-size": (
        picture((5, 3)),
        "size",
        "3x3x5 (channels, height, width), but most are 3x3x4; convert all to one size",
    ),
    "turned-to-another-size": (
        picture(exif=orientation(8)),
        "size",
        "3x4x3 (channels, height, width, upright by its EXIF orientation), but most are 3x3x4",
    ),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", FAULTY)
def test_each_unreadable_image_is_recorded_as_a_fault(tmp_path: Path, kind: str, packed: bool) -> None:
    content, column, reason = FAULTY[kind]
    files = GOOD | {"c/2.png": content, "d/1.png": content}
    data = read_images(write(tmp_path, {"x.tar": tar(dict(files))} if packed else files), "image-folder")
    assert (data.sources, data.labels.tolist(), data.classes) == (["c/1.png", "c/3.png"], [0, 0], ["c", "d"])
    for image, name in zip(data.images, GOOD, strict=True):
        np.testing.assert_array_equal(image, np.array(Image.open(io.BytesIO(GOOD[name]))).transpose(2, 0, 1))
    assert [fault.source for fault in data.faults] == ["c/2.png", "d/1.png"]
    assert data.faults[0].fault_column == column
    assert data.faults[0].fault.startswith(reason)
    assert data.faults[0].excerpt == repr(content[:20])


BAD_FOLDERS: dict[str, tuple[dict[str, bytes], str]] = {
    "nothing-left": (
        {"c/1.png": b"x", "c/2.png": b"x"},
        r"^c/1\.png:content: not an image; .* \(1 more; no image can be read\)$",
    ),
    "no-class": ({"1.png": picture()}, r"^1\.png: not in a folder CLASS/"),
    "no-class-in-a-tar": (
        {f"{n}.tar": tar({"1.png": picture()}) for n in "ab"},
        r"^a\.tar/1\.png: not in a folder CLASS/",
    ),
    "deeper": (GOOD | {"sub/c/1.png": picture()}, r"^sub/c/1\.png: not in CLASS/ like most images"),
    "less-deep": (
        {f"a/{name}": GOOD[name] for name in GOOD} | GOOD,
        r"^c/1\.png: not in \*/CLASS/ like most images",
    ),
    "unprintable": ({"c/1\n2.png": picture()}, r"^'c/1\\n2\.png': the name has characters"),
    "tar-and-image": ({"x.tar": tar(dict(GOOD)), "c/1.png": picture()}, r"^x\.tar: a tar among other files"),
    "link": (
        {"x.tar": tar({"c/1.png": picture(), "c/2.png": "/etc/passwd"})},
        r"^x\.tar: 'c/2\.png' is a symbolic link",
    ),
    "empty-tar": ({"x.tar": tar({})}, r"^x\.tar: has no images"),
    "cut-tar": ({"x.tar": tar({"c/1.png": picture((64, 64))})[:4000]}, r"^x\.tar: not a complete tar file"),
    "no-tar": ({"x.tar": b"x" * 2000}, r"^x\.tar: not a complete tar file"),
}


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_malformed_image_folder_is_a_one_line_error(tmp_path: Path, kind: str) -> None:
    files, line = BAD_FOLDERS[kind]
    with pytest.raises(DataError, match=line) as error:
        read_images(write(tmp_path, files), "image-folder")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source_format", ["auto", "mnist-csv", "image-folder", "cifar10"])
def test_a_source_without_files_is_a_one_line_error(tmp_path: Path, source_format: str) -> None:
    with pytest.raises(DataError, match="no files"):
        read_images(tmp_path, source_format)


def test_malformed_cifar10_is_a_one_line_error(tmp_path: Path) -> None:
    path = tmp_path / "cifar10.safetensors"
    path.write_bytes(b"x" * 20)
    with pytest.raises(DataError, match="not a complete safetensors"):
        read_images(tmp_path, "cifar10")
    save_file({"images": np.zeros((2, 3, 4, 4), np.uint8)}, path)
    with pytest.raises(DataError, match="keys are images; images and labels are needed"):
        read_images(tmp_path, "cifar10")
    save_file({"images": np.zeros((2, 3, 4, 4), np.float32), "labels": np.zeros(2, np.int64)}, path)
    with pytest.raises(DataError, match="float32"):
        read_images(tmp_path, "cifar10")


@pytest.mark.slow
@given(st.sampled_from(["a.csv", "a.csv.gz", "c/a.png", "x.tar", "cifar10.safetensors"]), st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_random_bytes_are_a_data_error(tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes) -> None:
    folder = write(tmp_path_factory.mktemp("fuzz"), {name: content})
    for source_format in (
        "auto",
        "mnist-csv" if ".csv" in name else "cifar10" if "cifar10" in name else "image-folder",
    ):
        with pytest.raises(DataError) as error:  # random bytes of this length hold no image
            read_images(folder, source_format)
        assert "\n" not in str(error.value)


@cifar10_tars
def test_a_tar_of_cifar10(tmp_path: Path, tars: Path | None) -> None:
    per_class = 3 if tars is None else 500
    if tars is None:
        write_cifar10_tars(tmp_path, {"train": per_class})
    else:
        (tmp_path / "train.tar").symlink_to(tars / "train.tar")
    data = read_images(tmp_path, "image-folder")
    assert data.images.shape == (10 * per_class, 3, 32, 32)
    assert (data.sources[0], data.sources[-1]) == ("train/airplane/0000.jpg", f"train/truck/{per_class - 1:04}.jpg")


def test_images_of_any_memory_order_are_written_unchanged(tmp_path: Path) -> None:
    """A CSV read by columns gives an array in Fortran order, which safetensors would write in the wrong order."""
    expected = np.arange(24, dtype=np.uint8).reshape(2, 1, 3, 4)
    labels = np.array([0, 1], dtype=np.int64)
    data = Images(np.asfortranarray(expected), labels, ["a", "b"], ["x:1", "x:2"])
    write_images(tmp_path / "out", data, pd.DataFrame(index=range(2)))
    arrays = load_file(tmp_path / "out" / "images.safetensors")
    assert np.array_equal(arrays["images"], expected)
    assert np.array_equal(arrays["labels"], labels)
