"""The gate for images: what stops the stage, what is dropped, what is listed, and checks of the whole set."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from image_files import cifar10_tars, mnist_csv, orientation, picture, rng, saved, write, write_cifar10_tars
from PIL import Image
from safetensors.numpy import load_file

from prefdag.config.label_pairs import LabelPairs
from prefdag.config.validate_images import ImageLevels, ValidateImages
from prefdag.images.reading import CIFAR10, DIGITS, read_images
from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import read_json, sha256
from stages import label_pairs, validate_images

pytestmark = pytest.mark.slow


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
    """Run the stage, and return the rows that it lists as offending."""
    validate_images.main(replace(SETTINGS, levels=replace(LEVELS, **(levels or {})), **settings))
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
        ["a.csv:11", "copy_of", "drop", "the same pixels as an earlier image; remove it", "a.csv:4", "images-4"]
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
        "label_noise": {"estimate": 1.0, "judge_accuracy": 0.0},  # ten images, each the only one of its class
        "format": "mnist-csv",
        "turned_upright": 0,
        "unreadable_exif": 0,
        "converted": {},
        "files_not_read": {"count": 0, "first": []},
        "files_skipped": {"count": 0, "first": []},
        "published_splits": {},
    }


def folder_of(raw: Path, classes: str = "abcd", of_each: int = 10) -> dict[tuple[str, int], bytes]:
    """An image folder of random images below `raw`, and its files."""
    files = {(label, n): picture((16, 16)) for label in classes for n in range(of_each)}
    write(raw, {f"{label}/{n}.png": content for (label, n), content in files.items()})
    return files


@pytest.mark.parametrize(("level", "kept"), [("warn", 40), ("drop", 40 - 2)])
def test_copies_are_dropped_or_kept_with_their_labels_and_sources(raw: Path, level: str, kept: int) -> None:
    """d/8 is a/0 with another label, and d/9 is a/1 made brighter."""
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
    assert rows["exact"].nunique() == 40 - 1 - (level == "drop")  # d/8, and d/9 if near copies are dropped
    assert rows["perceptual"].nunique() == 40 - 2
    summary = read_json(validate_images.REPORT / "summary.json")
    assert (summary["read"], summary["written"], summary["classes"]["d"]) == (40, kept, kept - 30)
    assert [summary[key] for key in ("exact_copies", "near_copies", "conflicting_copies")] == [1, 1, 2]


def test_images_that_cannot_be_read_are_dropped_or_stop_the_stage(raw: Path) -> None:
    folder_of(raw)
    write(raw, {"a/0.png": b"x", "b/3.png": picture((16, 17)), "c/4.png": picture((16, 16), "I;16")})
    with pytest.raises(DataError, match=r"^a/0\.png:content: not an image; .* \(2 more\); all are listed in "):
        run(format="image-folder")
    assert not validate_images.IMAGES.exists()
    listed = run({"invalid": "drop"}, format="image-folder")
    assert listed[["source", "column", "level"]].to_numpy().tolist() == [
        ["a/0.png", "content", "drop"],
        ["b/3.png", "size", "drop"],
        ["c/4.png", "mode", "drop"],
    ]
    rows = pd.read_parquet(validate_images.IMAGES / "rows.parquet")
    assert len(rows) == len(load_file(validate_images.IMAGES / "images.safetensors")["labels"]) == 40 - 3
    assert not {"a/0.png", "b/3.png", "c/4.png"} & set(rows["source"])
    summary = read_json(validate_images.REPORT / "summary.json")
    assert (summary["read"], summary["unreadable"], summary["written"]) == (40, 3, 40 - 3)


def test_photographs_are_upright_before_they_are_compared_and_written(
    raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """b/9 is a/0 as a camera stores it on its side: the same pixels."""
    files = folder_of(raw, "ab")
    on_its_side = Image.open(io.BytesIO(files["a", 0])).transpose(Image.Transpose.ROTATE_90)
    write(raw, {"b/9.png": saved(on_its_side, exif=orientation(6))})
    listed = run({"duplicate": "warn"}, format="auto")
    assert [tuple(row) for row in listed[["source", "column", "excerpt"]].to_numpy()] == [
        ("a/0.png", "conflict_with", "b/9.png"),
        ("b/9.png", "copy_of", "a/0.png"),
        ("b/9.png", "conflict_with", "a/0.png"),
    ]
    images = load_file(validate_images.IMAGES / "images.safetensors")["images"]
    np.testing.assert_array_equal(images[19], images[0])
    summary = read_json(validate_images.REPORT / "summary.json")
    assert (summary["turned_upright"], summary["format"]) == (1, "image-folder")
    printed = capsys.readouterr().out
    assert "validate_images: 1 image turned upright, as the EXIF orientation says\n" in printed
    assert "validate_images: format image-folder: a folder of class folders (a/0.png)\n" in printed


def test_webp_images_pass_the_gate(raw: Path) -> None:
    names = {label: "webp" if label == "a" else "png" for label in "abc"}
    write(
        raw,
        {
            f"{label}/{n}.{suffix}": picture((16, 16), kind=suffix.upper())
            for label, suffix in names.items()
            for n in range(10)
        },
    )
    assert run(format="auto").empty
    assert len(load_file(validate_images.IMAGES / "images.safetensors")["labels"]) == 30


@pytest.mark.parametrize("level", ["error", "drop"])
def test_a_class_of_another_format_is_named_before_its_class_is_missed(raw: Path, level: str) -> None:
    folder_of(raw, "bc")
    write(raw, {f"a/{n}.heic": b"\0\0\0\x18ftypheic" + bytes(9) for n in range(10)} | {"b/.DS_Store": b"x"})
    line = r"^a/0\.heic:format: HEIC; convert it to JPEG, PNG or WebP \(12 more\)"
    if level == "drop":
        line += "; without them, class a: no images; add some"
    with pytest.raises(DataError, match=line):
        run({"invalid": level}, format="image-folder")


def test_published_splits_are_kept_from_the_files_to_the_pairs(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """train/a/0 is a darker copy of test/a/0, so it is in no split."""
    files = {
        f"{split}/{label}/{n}.png": picture((16, 16))
        for split in ("test", "train")
        for label in "ab"
        for n in range(20)
    }
    darker = Image.open(io.BytesIO(files["test/a/0.png"])).point(lambda value: value * 0.8)
    write(raw, files | {"train/a/0.png": saved(darker)})
    run(format="auto")
    rows = pd.read_parquet(validate_images.IMAGES / "rows.parquet")
    assert rows["split"].tolist() == [source.split("/")[0] for source in rows["source"]]
    assert read_json(validate_images.REPORT / "summary.json")["published_splits"] == {"test": 40, "train": 40}
    label_pairs.main(LabelPairs(max_images=None, val_fraction=0.25, test_fraction=0.5, seed=0))
    pairs = pd.read_parquet(label_pairs.OUT / "pairs.parquet")
    published = rows["split"][pairs["index"]].to_numpy()
    assert ((pairs["split"] == "test") == (published == "test")).all()
    assert pairs["split"].value_counts().to_dict() == {"test": 40, "train": 29, "val": 10}
    summary = read_json(label_pairs.OUT / "summary.json")
    assert (summary["straddling"], summary["left_out"]) == ({"exact": 0, "perceptual": 0}, 1)
    assert summary["published"] == {"test": 40, "train": 40}
    printed = capsys.readouterr().out
    assert "label_pairs: published splits kept: 40 test, 40 train\n" in printed
    assert "label_pairs: left out as copies of images that are held out further: 1\n" in printed


def test_images_without_published_splits_have_no_such_column(raw: Path) -> None:
    folder_of(raw)
    run(format="image-folder")
    assert sorted(pd.read_parquet(validate_images.IMAGES / "rows.parquet")) == ["exact", "perceptual", "source"]


def test_too_many_dropped_images_stop_the_stage(raw: Path) -> None:
    folder_of(raw)
    write(raw, {"a/0.png": b"x"})
    assert len(run({"invalid": "drop"}, format="image-folder", max_dropped=1 / 40)) == 1
    with pytest.raises(DataError, match=r"; 1 of 40 images exceed validate_images\.max_dropped; all are listed in "):
        run({"invalid": "drop"}, format="image-folder", max_dropped=0.024)


def test_classes_are_counted_without_dropped_images(raw: Path) -> None:
    files = folder_of(raw, "ab")
    write(raw, {f"b/{n}.png": files["a", n] for n in range(10)})
    with pytest.raises(DataError, match=r"^class b:images: no images; add some"):
        run(format="image-folder", max_imbalance=10)
    folder_of(raw, "b", of_each=5)  # five of the ten are new: 10 / 5 = 2 times as many of a, and 1.5 are allowed
    with pytest.raises(DataError, match=r"^class a:times_smallest: too many images compared with the smallest class"):
        run(format="image-folder")


def test_a_suspected_label_is_listed_if_the_judge_is_good_enough(raw: Path) -> None:
    """30 dark and 30 bright images, one of each with the other's label."""
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
    assert len(pd.read_parquet(validate_images.IMAGES / "rows.parquet")) == 60 - 2
    assert run(format="image-folder", min_judge_accuracy=0.99).empty


@pytest.mark.parametrize(
    ("labels", "blank", "line"),
    [
        ([*range(10), 10], None, r"^a\.csv:11:label: not a class; labels range from 0 to 9"),
        ([*range(10)], 4, r"^a\.csv:5:contrast: all pixels are equal"),
        ([*range(10), 7, 7], None, r"^class 7:times_smallest: too many images"),
        ([*range(9)], None, r"^class 9:images: no images"),
    ],
)
def test_the_stage_refuses(raw: Path, labels: list[int], blank: int | None, line: str) -> None:
    def edit(rows: list[list[str]]) -> None:
        if blank is not None:
            rows[blank][:784] = ["7"] * 784

    write(raw, {"a.csv": mnist_csv(labels, edit)})
    with pytest.raises(DataError, match=line):
        run()
    assert not validate_images.IMAGES.exists()
    assert not validate_images.REPORT.exists()


def test_rows_without_a_class_and_blank_images_can_be_dropped(raw: Path) -> None:
    write(raw, {"a.csv": mnist_csv([*range(10), 10, 3], lambda rows: rows[11].__setitem__(slice(784), ["7"] * 784))})
    listed = run({"invalid": "drop"})
    assert listed[["source", "column", "excerpt"]].to_numpy().tolist() == [
        ["a.csv:11", "label", 10],
        ["a.csv:12", "contrast", 0],
    ]
    assert "label,drop,not a class; labels range from 0 to 9; correct it,10,images-2\n" in (
        validate_images.REPORT / "offending.csv"
    ).read_text("utf-8")
    assert load_file(validate_images.IMAGES / "images.safetensors")["labels"].tolist() == [*range(10)]


@cifar10_tars
def test_tars_of_cifar10_pass_the_gate(raw: Path, tars: Path | None) -> None:
    """Both tars together. A few photographs are in them twice, at least one of them in both published splits."""
    train, test = (5, 2) if tars is None else (500, 200)
    if tars is None:
        write_cifar10_tars(raw, {"train": train, "test": test})
    else:
        raw.mkdir(parents=True)
        for name in ("train.tar", "test.tar"):
            (raw / name).symlink_to(tars / name)
    data = read_images(raw, "image-folder")
    assert (data.images.shape, data.classes) == ((10 * (train + test), 3, 32, 32), CIFAR10)
    assert np.bincount(data.labels).tolist() == [train + test] * 10
    ends = ("test.tar/test/airplane/0000.jpg", f"train.tar/train/truck/{train - 1:04}.jpg")
    assert (data.sources[0], data.sources[-1]) == ends
    listed = run(format="image-folder", similarity=0.9)
    assert set(listed["column"]) == {"near_copy_of"}
    if tars is None:
        assert listed[["source", "excerpt"]].to_numpy().tolist() == [["train.tar/train/airplane/0000.jpg", ends[0]]]
    else:
        assert 3 <= len(listed) <= 20
    summary = read_json(validate_images.REPORT / "summary.json")
    assert summary["label_noise"]["judge_accuracy"] < 0.5
    label_pairs.main(LabelPairs(max_images=None, val_fraction=0.1, test_fraction=0.2, seed=0))
    assert read_json(label_pairs.OUT / "summary.json")["straddling"] == {"exact": 0, "perceptual": 0}
