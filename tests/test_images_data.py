"""Images from every source become the same arrays; a broken one is one line that names it."""

import gzip
import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file, save_file

from prefdag.artifacts import read_json, sha256
from prefdag.config import ImageLevels, LabelPairs, ValidateImages
from prefdag.data.images import CIFAR10, DIGITS, Images, read_images, write_images
from prefdag.errors import DataError
from stages import label_pairs, validate_images

CIFAR10_TARS = Path(__file__).parents[2] / "shared/data/cifar10"
rng = np.random.default_rng(0)


def mnist_csv(labels: list[int], edit: Callable[[list[list[str]]], object] = lambda rows: None) -> bytes:
    """Rows of 784 random pixels and a label; `edit` may break them."""
    rows = [[*map(str, rng.integers(0, 256, 784)), str(label)] for label in labels]
    edit(rows)
    return "".join(",".join(row) + "\n" for row in rows).encode()


def picture(size: tuple[int, int] = (4, 3), mode: str = "RGB") -> bytes:
    """A random PNG of (width, height)."""
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode).save(stream, "PNG")
    return stream.getvalue()


def tar(members: dict[str, bytes | str]) -> bytes:
    """A tar of files; a text instead of bytes makes a link to it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


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
    for one, other in zip(folder, packed, strict=True):
        np.testing.assert_array_equal(one, other)
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
    "text": (mnist_csv([1, 2], set_cell(1, 5, "x")), "a.csv:2:6: 'x' is no whole number"),
    "empty": (mnist_csv([1, 2], set_cell(1, 0, "")), "a.csv:2:1: '' is no whole number"),
    "fraction": (mnist_csv([1, 2], set_cell(0, 7, "0.5")), "a.csv:1:8: '0.5' is no whole number"),
    "nan": (mnist_csv([1, 2], set_cell(0, 784, "nan")), "a.csv:1:785: 'nan' is no whole number"),
    "infinite": (mnist_csv([1, 2], set_cell(1, 7, "inf")), "a.csv:2:8: 'inf' is no whole number"),
    "huge": (mnist_csv([1, 2], set_cell(1, 7, "9" * 30)), "a.csv:2:8: "),
    "bright": (mnist_csv([1, 2], set_cell(1, 7, "256")), "a.csv:2:8: 256 is no pixel"),
    "negative": (mnist_csv([1, 2], set_cell(1, 7, "-1")), "a.csv:2:8: -1 is no pixel"),
    "short-row": (mnist_csv([1, 2], lambda rows: rows[1].pop()), "a.csv:2:785: '' is no whole number"),
    "long-row": (mnist_csv([1, 2], lambda rows: rows[1].append("1")), "a.csv: not a whole CSV file"),
    "narrow": (b"1,2,3\n", "a.csv: 3 columns; 785 are needed"),
    "no-rows": (b"", "a.csv: empty"),
    "bytes": (b"\xff\x00", "a.csv: not a whole CSV file"),
}


@pytest.mark.parametrize("kind", BAD_CSV)
def test_malformed_mnist_csv_is_one_line(tmp_path: Path, kind: str) -> None:
    content, line = BAD_CSV[kind]
    with pytest.raises(DataError) as error:
        read_images(write(tmp_path, {"a.csv": content}), "mnist-csv")
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_truncated_gzip_is_one_line(tmp_path: Path) -> None:
    write(tmp_path, {"a.csv.gz": gzip.compress(mnist_csv([1, 2]))[:-40]})
    with pytest.raises(DataError, match=r"^a\.csv\.gz: not a whole gzip file"):
        read_images(tmp_path, "mnist-csv")


def test_several_tars_and_several_tops_are_pooled(tmp_path: Path) -> None:
    """Names may stand in both tars: each has its tar's before it."""
    names = ("a/1.png", "b/1.png")
    write(tmp_path / "tars", {f"{top}.tar": tar({name: picture() for name in names}) for top in ("train", "test")})
    write(tmp_path / "tops", {f"{top}/{name}": picture() for name in names for top in ("train", "test")})
    for folder, suffix in (("tars", ".tar"), ("tops", "")):
        data = read_images(tmp_path / folder, "image-folder")
        assert data.sources == [f"{top}{suffix}/{name}" for top in ("test", "train") for name in names]
        assert (data.labels.tolist(), data.classes) == ([0, 1, 0, 1], ["a", "b"])


GOOD = {"c/1.png": picture(), "c/3.png": picture()}
FAULTY: dict[str, tuple[bytes, str, str]] = {
    "not-an-image": (
        b"<!DOCTYPE html>",
        "content",
        "not a whole JPEG or PNG image (another format); mend or remove it",
    ),
    "empty": (b"", "content", "not a whole JPEG or PNG image (another format); mend or remove it"),
    "truncated": (picture((64, 64))[:-500], "size", "3x64x64 (channels, height, width) where most are 3x3x4"),
    "broken": (picture()[:-25], "content", "not a whole JPEG or PNG image ("),
    "other-size": (picture((5, 3)), "size", "3x3x5 (channels, height, width) where most are 3x3x4; convert all to one"),
    "other-mode": (
        picture(mode="L"),
        "size",
        "1x3x4 (channels, height, width) where most are 3x3x4; convert all to one",
    ),
    "palette": (picture(mode="P"), "mode", "P; convert the image to grey (L) or RGB"),
    "alpha": (picture(mode="RGBA"), "mode", "RGBA; convert the image to grey (L) or RGB"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", FAULTY)
def test_an_image_that_cannot_be_read_is_a_fault_of_its_own(tmp_path: Path, kind: str, packed: bool) -> None:
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
        r"^c/1\.png:content: not a whole JPEG .* \(1 more, and no image left\)$",
    ),
    "no-class": ({"1.png": picture()}, r"^1\.png: not in CLASS/"),
    "no-class-in-a-tar": ({f"{n}.tar": tar({"1.png": picture()}) for n in "ab"}, r"^1\.png: not in CLASS/"),
    "deeper": (GOOD | {"sub/c/1.png": picture()}, r"^sub/c/1\.png: not in CLASS/, as most images are"),
    "less-deep": (
        {f"a/{name}": GOOD[name] for name in GOOD} | GOOD,
        r"^c/1\.png: not in \*/CLASS/, as most images are",
    ),
    "unprintable": ({"c/1\n2.png": picture()}, r"^'c/1\\n2\.png': the name has characters"),
    "tar-and-image": ({"x.tar": tar(dict(GOOD)), "c/1.png": picture()}, r"^x\.tar: a tar among other files"),
    "link": (
        {"x.tar": tar({"c/1.png": picture(), "c/2.png": "/etc/passwd"})},
        r"^x\.tar: 'c/2\.png' is a symbolic link",
    ),
    "empty-tar": ({"x.tar": tar({})}, r"^x\.tar: holds no images"),
    "cut-tar": ({"x.tar": tar({"c/1.png": picture((64, 64))})[:4000]}, r"^x\.tar: not a whole tar file"),
    "no-tar": ({"x.tar": b"x" * 2000}, r"^x\.tar: not a whole tar file"),
}


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_malformed_image_folder_is_one_line(tmp_path: Path, kind: str) -> None:
    files, line = BAD_FOLDERS[kind]
    with pytest.raises(DataError, match=line) as error:
        read_images(write(tmp_path, files), "image-folder")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source_format", ["mnist-csv", "image-folder", "cifar10"])
def test_no_files_is_one_line(tmp_path: Path, source_format: str) -> None:
    with pytest.raises(DataError, match="no files"):
        read_images(tmp_path, source_format)


def test_malformed_cifar10_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "cifar10.safetensors"
    path.write_bytes(b"x" * 20)
    with pytest.raises(DataError, match="not a whole safetensors"):
        read_images(tmp_path, "cifar10")
    save_file({"images": np.zeros((2, 3, 4, 4), np.uint8)}, path)
    with pytest.raises(DataError, match="keys images where images and labels"):
        read_images(tmp_path, "cifar10")
    save_file({"images": np.zeros((2, 3, 4, 4), np.float32), "labels": np.zeros(2, np.int64)}, path)
    with pytest.raises(DataError, match="float32"):
        read_images(tmp_path, "cifar10")


@given(st.sampled_from(["a.csv", "a.csv.gz", "c/a.png", "x.tar", "cifar10.safetensors"]), st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_random_bytes_are_a_data_error(tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes) -> None:
    source_format = "mnist-csv" if ".csv" in name else "cifar10" if "cifar10" in name else "image-folder"
    with pytest.raises(DataError) as error:  # random bytes of this length hold no image
        read_images(write(tmp_path_factory.mktemp("fuzz"), {name: content}), source_format)
    assert "\n" not in str(error.value)


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """data/raw/images in an empty project."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path / validate_images.RAW


LEVELS = ImageLevels(invalid="error", duplicate="drop", near_duplicate="warn", label="warn")
SETTINGS = ValidateImages(
    format="mnist-csv",
    levels=LEVELS,
    similarity=0.99,
    min_judge_accuracy=0.8,
    max_dropped=0.5,
    max_imbalance=1.5,
)


def run(levels: dict[str, str] | None = None, **settings: Any) -> pd.DataFrame:
    """The stage, with what it listed as offending."""
    validate_images.main.main(replace(SETTINGS, levels=replace(LEVELS, **(levels or {})), **settings))
    return pd.read_csv(validate_images.REPORT / "offending.csv", keep_default_na=False)


def test_stage_writes_images_classes_and_report(raw: Path) -> None:
    content = mnist_csv([*range(10), 3])
    first = content.split(b"\n")[3]
    write(raw, {"a.csv": content.replace(content.split(b"\n")[10], first)})
    hashes = []
    for _ in range(2):
        listed = run(max_imbalance=2)
        hashes.append((sha256(validate_images.IMAGES), sha256(validate_images.REPORT)))
    assert hashes[0] == hashes[1]
    tensors = load_file(validate_images.IMAGES / "images.safetensors")
    assert tensors["images"].shape == (10, 1, 28, 28)
    assert tensors["labels"].tolist() == [*range(10)]
    assert read_json(validate_images.IMAGES / "classes.json") == DIGITS
    rows = pd.read_parquet(validate_images.IMAGES / "rows.parquet")
    assert rows["source"].tolist() == [f"a.csv:{n}" for n in range(1, 11)]
    assert listed.to_numpy().tolist() == [
        ["a.csv:11", "copy_of", "drop", "the same pixels as an earlier image; remove it", "a.csv:4"]
    ]
    assert read_json(validate_images.REPORT / "summary.json") == {
        "read": 11,
        "written": 10,
        "classes": dict.fromkeys(DIGITS, 1),
        "unreadable": 0,
        "exact_copies": 1,
        "near_copies": 0,
        "conflicting_copies": 0,
        "suspected_labels": 0,
        "label_noise": {"estimate": 1.0, "judge_accuracy": 0.0},  # ten images, each of a class of its own
    }


def folder_of(raw: Path, classes: str = "abcd", of_each: int = 10) -> dict[tuple[str, int], bytes]:
    """An image folder of random images below `raw`, and its files."""
    files = {(label, n): picture((16, 16)) for label in classes for n in range(of_each)}
    write(raw, {f"{label}/{n}.png": content for (label, n), content in files.items()})
    return files


@pytest.mark.parametrize(("level", "kept"), [("warn", 40), ("drop", 38)])
def test_copies_are_dropped_or_kept_and_images_labels_and_sources_alike(raw: Path, level: str, kept: int) -> None:
    """d/8 is a/0, under another label; d/9 is a brighter a/1."""
    files = folder_of(raw)
    brighter = Image.open(io.BytesIO(files["a", 1])).point(lambda value: value * 0.8 + 40)
    brighter.save(raw / "d/9.png")
    write(raw, {"d/8.png": files["a", 0]})
    listed = run({"duplicate": level, "near_duplicate": level}, format="image-folder")
    assert [tuple(row) for row in listed[["source", "column", "level", "excerpt"]].to_numpy()] == [
        ("a/0.png", "conflict_with", "warn", "d/8.png"),
        ("d/8.png", "copy_of", level, "a/0.png"),
        ("d/8.png", "conflict_with", "warn", "a/0.png"),
        ("d/9.png", "near_copy_of", level, "a/1.png"),
    ]
    tensors = load_file(validate_images.IMAGES / "images.safetensors")
    rows = pd.read_parquet(validate_images.IMAGES / "rows.parquet")
    assert len(tensors["images"]) == len(tensors["labels"]) == len(rows) == kept
    for image, label, source in zip(tensors["images"], tensors["labels"], rows["source"], strict=True):
        np.testing.assert_array_equal(image, np.array(Image.open(raw / source)).transpose(2, 0, 1))
        assert source.startswith("abcd"[label])
    assert rows["exact"].nunique() == 39 - (level == "drop")
    assert rows["perceptual"].nunique() == 38
    summary = read_json(validate_images.REPORT / "summary.json")
    assert (summary["read"], summary["written"], summary["classes"]["d"]) == (40, kept, kept - 30)
    assert [summary[key] for key in ("exact_copies", "near_copies", "conflicting_copies")] == [1, 1, 2]


def test_images_that_cannot_be_read_are_dropped_or_stop(raw: Path) -> None:
    folder_of(raw)
    write(raw, {"a/0.png": b"x", "b/3.png": picture((16, 17)), "c/4.png": picture((16, 16), "P")})
    with pytest.raises(DataError, match=r"^a/0\.png:content: not a whole .* \(2 more\); all are listed in "):
        run(format="image-folder")
    assert not validate_images.IMAGES.exists()
    listed = run({"invalid": "drop"}, format="image-folder")
    assert listed[["source", "column", "level"]].to_numpy().tolist() == [
        ["a/0.png", "content", "drop"],
        ["b/3.png", "size", "drop"],
        ["c/4.png", "mode", "drop"],
    ]
    rows = pd.read_parquet(validate_images.IMAGES / "rows.parquet")
    assert len(rows) == len(load_file(validate_images.IMAGES / "images.safetensors")["labels"]) == 37
    assert not {"a/0.png", "b/3.png", "c/4.png"} & set(rows["source"])
    summary = read_json(validate_images.REPORT / "summary.json")
    assert (summary["read"], summary["unreadable"], summary["written"]) == (40, 3, 37)


def test_too_many_dropped_images_stop_the_stage(raw: Path) -> None:
    folder_of(raw)
    write(raw, {"a/0.png": b"x"})
    assert len(run({"invalid": "drop"}, format="image-folder", max_dropped=0.025)) == 1
    with pytest.raises(DataError, match=r"; 1 of 40 images exceed validate_images\.max_dropped; all are listed in "):
        run({"invalid": "drop"}, format="image-folder", max_dropped=0.024)


def test_classes_are_counted_without_what_is_dropped(raw: Path) -> None:
    files = folder_of(raw, "ab")
    write(raw, {f"b/{n}.png": files["a", n] for n in range(10)})
    with pytest.raises(DataError, match=r"^class b:images: no images; add some"):
        run(format="image-folder", max_imbalance=10)
    folder_of(raw, "b", of_each=5)
    with pytest.raises(DataError, match=r"^class a:times_smallest: too many images next to the smallest class"):
        run(format="image-folder")


def test_a_suspected_label_is_named_where_the_judge_is_good(raw: Path) -> None:
    """Dark and bright images, one of each under the other's label."""
    for label, brightness in (("dark", 30), ("light", 220)):
        for n in range(30):
            pixels = rng.integers(brightness - 20, brightness + 20, (16, 16), dtype=np.uint8)
            (raw / label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(255 - pixels if n == 7 else pixels).save(raw / label / f"{n:02}.png")
    listed = run(format="image-folder")
    assert listed[["source", "column", "level", "excerpt"]].to_numpy().tolist() == [
        ["dark/07.png", "likely", "warn", "light: 100% of the nearest images, 0% dark"],
        ["light/07.png", "likely", "warn", "dark: 100% of the nearest images, 0% light"],
    ]
    noise = read_json(validate_images.REPORT / "summary.json")["label_noise"]
    assert noise == {"estimate": pytest.approx(2 / 60, abs=0.01), "judge_accuracy": pytest.approx(58 / 60, abs=1e-3)}
    assert len(run({"label": "drop"}, format="image-folder")) == 2
    assert len(pd.read_parquet(validate_images.IMAGES / "rows.parquet")) == 58
    assert run(format="image-folder", min_judge_accuracy=0.99).empty


@pytest.mark.parametrize(
    ("labels", "blank", "line"),
    [
        ([*range(10), 10], None, r"^a\.csv:11:label: no class; labels run from 0 to 9"),
        ([*range(10)], 4, r"^a\.csv:5:contrast: all pixels are equal"),
        ([*range(10), 7, 7], None, r"^class 7:times_smallest: too many images"),
        ([*range(9)], None, r"^class 9:images: no images"),
    ],
)
def test_stage_refuses(raw: Path, labels: list[int], blank: int | None, line: str) -> None:
    def edit(rows: list[list[str]]) -> None:
        if blank is not None:
            rows[blank][:784] = ["7"] * 784

    write(raw, {"a.csv": mnist_csv(labels, edit)})
    with pytest.raises(DataError, match=line):
        run()
    assert not validate_images.IMAGES.exists()
    assert not validate_images.REPORT.exists()


def test_rows_of_no_class_and_blank_ones_can_be_dropped(raw: Path) -> None:
    write(raw, {"a.csv": mnist_csv([*range(10), 10, 3], lambda rows: rows[11].__setitem__(slice(784), ["7"] * 784))})
    listed = run({"invalid": "drop"})
    assert listed[["source", "column", "excerpt"]].to_numpy().tolist() == [
        ["a.csv:11", "label", 10],
        ["a.csv:12", "contrast", 0],
    ]
    assert "label,drop,no class; labels run from 0 to 9; mend it,10\n" in (
        validate_images.REPORT / "offending.csv"
    ).read_text("utf-8")
    assert load_file(validate_images.IMAGES / "images.safetensors")["labels"].tolist() == [*range(10)]


@pytest.mark.skipif(not CIFAR10_TARS.exists(), reason="needs ../shared/data/cifar10")
def test_real_cifar10_tars_pass_the_gate(raw: Path) -> None:
    """Both tars pooled: the same photograph stands in them twice a few times, at least once across the published splits."""
    raw.mkdir(parents=True)
    for name in ("train.tar", "test.tar"):
        (raw / name).symlink_to(CIFAR10_TARS / name)
    data = read_images(raw, "image-folder")
    assert (data.images.shape, data.classes) == ((7000, 3, 32, 32), CIFAR10)
    assert np.bincount(data.labels).tolist() == [700] * 10
    ends = ("test.tar/test/airplane/0000.jpg", "train.tar/train/truck/0499.jpg")
    assert (data.sources[0], data.sources[-1]) == ends
    listed = run(format="image-folder", similarity=0.9)
    assert set(listed["column"]) == {"near_copy_of"}
    assert 3 <= len(listed) <= 20
    summary = read_json(validate_images.REPORT / "summary.json")
    assert summary["label_noise"]["judge_accuracy"] < 0.5
    label_pairs.main.main(LabelPairs(max_images=None, val_fraction=0.1, test_fraction=0.2, seed=0))
    assert read_json(label_pairs.OUT / "summary.json")["straddling"] == {"exact": 0, "perceptual": 0}


@pytest.mark.skipif(not CIFAR10_TARS.exists(), reason="needs ../shared/data/cifar10")
def test_real_cifar10_tar(tmp_path: Path) -> None:
    (tmp_path / "train.tar").symlink_to(CIFAR10_TARS / "train.tar")
    data = read_images(tmp_path, "image-folder")
    assert data.images.shape == (5000, 3, 32, 32)
    assert (data.sources[0], data.sources[-1]) == ("train/airplane/0000.jpg", "train/truck/0499.jpg")


def test_what_is_written_is_what_was_read_in_any_memory_order(tmp_path: Path) -> None:
    """A CSV read column by column gives an array in Fortran order, which safetensors would write scrambled."""
    expected = np.arange(24, dtype=np.uint8).reshape(2, 1, 3, 4)
    labels = np.array([0, 1], dtype=np.int64)
    data = Images(np.asfortranarray(expected), labels, ["a", "b"], ["x:1", "x:2"])
    write_images(tmp_path / "out", data, pd.DataFrame(index=range(2)))
    found = load_file(tmp_path / "out" / "images.safetensors")
    assert np.array_equal(found["images"], expected)
    assert np.array_equal(found["labels"], labels)
