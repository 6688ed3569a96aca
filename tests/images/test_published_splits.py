"""Published splits of images are recognised by names, kept apart, and never trained on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from image_files import mnist_csv, picture, write
from safetensors.numpy import save_file

from prefdag.config.label_pairs import LabelPairs
from prefdag.image.label_pairs import check_published, label_pairs, published_summary
from prefdag.images.published import splits_of_files, splits_of_folders
from prefdag.images.reading import read_images
from prefdag.lifecycle.errors import DataError

LABEL = LabelPairs(max_images=None, val_fraction=0.1, test_fraction=0.2, seed=0)

FOLDERS: dict[str, tuple[list[str], list[str] | None]] = {
    "none": (["cat/1", "dog/1"], None),
    "train and test": (["train/cat/1", "test/cat/1"], ["train", "test"]),
    "all three": (["Training/a/1", "validation/a/1", "TEST/a/1"], ["train", "val", "test"]),
    "below others": (["set/v1/train/a/1", "set/v1/dev/a/1"], ["train", "val"]),
    "with other words": (["seg_train/seg_train/sea/1", "seg_test/seg_test/sea/1"], ["train", "test"]),
    "with years": (["train2017/a/1", "val2017/a/1"], ["train", "val"]),
    "tars": (["train.tar/train/a/1", "test.tar/test/a/1"], ["train", "test"]),
    "sharded tars": (["c-train-0.tar/a/1", "c-train-1.tar/a/1", "c-test-0.tar/a/1"], ["train", "train", "test"]),
    "only train": (["train/a/1", "train/b/1"], ["train", "train"]),
    "only test": (["test/a/1", "test/b/1"], ["test", "test"]),
    "a folder around all": (["my-test-photos/a/1", "my-test-photos/b/1"], None),
    "vehicles": (["train/steam/1", "car/coupe/1"], None),
    "a class called train": (["train/1", "car/1"], None),
    "stations": (["train_station/day/1", "bus_station/day/1"], None),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_and_tars(case: str) -> None:
    names, splits = FOLDERS[case]
    assert splits_of_folders(names) == splits


UNCLEAR = {
    "another folder": (
        ["train/a/1", "test/a/1", "extra/a/1"],
        r"^extra: has the same classes as the folder \w+ beside it",
    ),
    "a holdout": (
        ["train/a/1", "quiz/a/1"],
        r"^quiz: has the same classes as the folder train beside it, but names no",
    ),
    "classes above": (
        ["cat/train/1", "cat/test/1"],
        r"^cat/train/1: the image's folder is its class, but it names a split",
    ),
    "no classes": (["train/cat.1", "train/dog.1"], r"^train/cat\.1: the image's folder is its class"),
    "both": (
        ["train.tar/test/a/1", "test.tar/train/a/1"],
        r"^train\.tar/test/a/1: its folders name the splits test and train",
    ),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_unclear_names_are_named(case: str) -> None:
    names, line = UNCLEAR[case]
    with pytest.raises(DataError, match=line):
        splits_of_folders(names)


def test_files() -> None:
    assert splits_of_files(["mnist_train.csv", "mnist_test.csv.gz"]) == ["train", "test"]
    assert splits_of_files(["test.csv"]) == ["test"]
    assert splits_of_files(["mnist_test.csv"]) is None  # a file alone may be called so by its owner
    assert splits_of_files(["a.csv", "train.csv"]) is None
    with pytest.raises(DataError, match=r"^a\.csv: names no split, but test\.csv beside it is test; rename it"):
        splits_of_files(["a.csv", "test.csv"])


def test_csv_files_and_cifar10(tmp_path: Path) -> None:
    write(tmp_path / "csv", {"train.csv": mnist_csv([1, 2]), "test.csv": mnist_csv([3])})
    assert read_images(tmp_path / "csv", "auto").split == ["test", "train", "train"]
    images = np.zeros((50_003, 1, 1, 1), np.uint8)
    (tmp_path / "cifar").mkdir()
    save_file({"images": images, "labels": np.zeros(50_003, np.int64)}, tmp_path / "cifar/cifar10.safetensors")
    data = read_images(tmp_path / "cifar", "auto")
    assert data.split is not None
    assert data.split[49_999:] == ["train", "test", "test", "test"]


def test_the_split_follows_its_image(tmp_path: Path) -> None:
    """Also where images that cannot be read lie between others."""
    files = {f"{split}/{label}/{n}.png": picture() for split in ("train", "test") for label in "ab" for n in range(3)}
    data = read_images(write(tmp_path, files | {"test/a/1.png": b"x", "train/b/0.png": b"x"}), "auto")
    assert data.split == [source.split("/")[0] for source in data.sources]
    assert len(data.faults) == 2


@pytest.mark.slow
@given(
    st.lists(st.sampled_from(["train", "train", "train", "val", "test"]), min_size=60, max_size=200),
    st.integers(0, 40),
    st.none() | st.integers(50, 150),
    st.integers(0, 3),
)
def test_held_out_images_and_their_copies_are_never_trained_on(
    published: list[str], n_copies: int, max_images: int | None, seed: int
) -> None:
    random = np.random.default_rng(seed)
    groups = np.arange(len(published))
    groups[random.integers(0, len(groups), n_copies)] = groups[random.integers(0, len(groups), n_copies)]
    labels = random.integers(0, 3, len(published))
    try:
        pairs = label_pairs(labels, groups, 3, replace(LABEL, seed=seed, max_images=max_images), published)
    except DataError as error:
        assume("empty" not in str(error))
        raise
    index, split = pairs["index"].to_numpy(), np.array(pairs["split"].to_pylist())
    was = np.array(published)[index]
    for held_out in ("val", "test"):
        if held_out in published:
            assert (split[was == held_out] == held_out).all()
            assert (was[split == held_out] == held_out).all()
    for group in set(groups[index].tolist()):
        assert len(set(split[groups[index] == group])) == 1
    if max_images is None:
        left_out = set(range(len(published))) - set(index.tolist())
        assert len(left_out) == published_summary(published, groups)["left_out"]
        assert all(published[i] != "test" for i in left_out)
        order = ["train", "val", "test"]
        for i in left_out:
            furthest = max(order.index(published[j]) for j in np.flatnonzero(groups == groups[i]))
            assert furthest > order.index(published[i])


def test_fractions_are_of_the_rest() -> None:
    """100 published as test and 900 others: a tenth of the 900 is val, whatever test_fraction is."""
    published = ["test"] * 100 + ["train"] * 900
    pairs = label_pairs(np.arange(1000) % 10, np.arange(1000), 10, LABEL, published)
    counts = {split: pairs["split"].to_pylist().count(split) for split in ("train", "val", "test")}
    assert counts == {"train": 810, "val": 90, "test": 100}
    published = ["val"] * 100 + ["train"] * 900
    pairs = label_pairs(np.arange(1000) % 10, np.arange(1000), 10, LABEL, published)
    counts = {split: pairs["split"].to_pylist().count(split) for split in ("train", "val", "test")}
    assert counts == {"train": 720, "val": 100, "test": 180}


def test_only_train_is_split_as_if_nothing_was_published() -> None:
    labels, groups = np.arange(200) % 4, np.arange(200)
    assert label_pairs(labels, groups, 4, LABEL, ["train"] * 200).equals(label_pairs(labels, groups, 4, LABEL))


def test_a_class_that_is_only_held_out_is_named() -> None:
    labels, classes = np.array([0, 0, 1, 1]), ["cat", "dog"]
    check_published(labels, ["train", "test", "train", "test"], classes)
    with pytest.raises(DataError, match="all images of class dog were published as test"):
        check_published(labels, ["train", "test", "test", "test"], classes)
    with pytest.raises(DataError, match="all images were published as val and test, by the names of their folders"):
        check_published(labels, ["val", "test", "test", "test"], classes)
