"""Pairs of classes for images, in splits that no copy straddles."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from prefdag.config.label_pairs import LabelPairs
from prefdag.images.label_pairs import IMAGE_PAIRS_SCHEMA, label_pairs, split_summary
from prefdag.lifecycle.errors import DataError, ParamsError
from prefdag.runtime.artifacts import read_json, write_json
from stages import label_pairs as stage

LABEL = LabelPairs(max_images=None, val_fraction=0.1, test_fraction=0.2, seed=0)


@given(st.integers(2, 6), st.integers(0, 5), st.none() | st.integers(30, 200))
def test_label_pairs_are_stratified_and_alive(n_classes: int, seed: int, max_images: int | None) -> None:
    labels = np.random.default_rng(seed).permutation(np.arange(180) % n_classes)
    pairs = label_pairs(labels, np.arange(len(labels)), n_classes, replace(LABEL, seed=seed, max_images=max_images))
    assert pairs.schema.equals(IMAGE_PAIRS_SCHEMA)
    index, y_w, y_l = (pairs[name].to_numpy() for name in ("index", "y_w", "y_l"))
    assert (y_w == labels[index]).all()
    assert (y_l != y_w).all()
    assert ((y_l >= 0) & (y_l < n_classes)).all()
    assert (np.diff(index) > 0).all()  # hence no image twice, hence splits are disjoint
    assert len(index) == min(max_images or 180, 180)
    of_class = np.bincount(y_w, minlength=n_classes)
    assert of_class.max() - of_class.min() <= 1
    split = np.array(pairs["split"].to_pylist())
    assert (split == "test").sum() == round(0.2 * len(index))
    assert (split == "val").sum() == round(0.1 * len(index))
    for label in range(n_classes):
        assert abs((split[y_w == label] == "test").sum() - 0.2 * of_class[label]) <= 1
        assert abs((split[y_w == label] == "val").sum() - 0.1 * of_class[label]) <= 1


def test_y_l_is_uniform_over_the_other_classes() -> None:
    labels = np.zeros(9000, dtype=np.int64)
    y_l = label_pairs(labels, np.arange(len(labels)), 10, LABEL)["y_l"].to_numpy()
    counts = np.bincount(y_l, minlength=10)
    assert counts[0] == 0
    # Binomial(9000, 1/9): mean 1000, standard deviation 30.
    assert (np.abs(counts[1:] - 1000) < 5 * 30).all()


def test_max_images_takes_what_small_classes_have() -> None:
    labels = np.array([0] * 50 + [1] * 3 + [2] * 50)
    pairs = label_pairs(labels, np.arange(len(labels)), 3, replace(LABEL, max_images=43, val_fraction=0.0))
    assert np.bincount(pairs["y_w"].to_numpy()).tolist() == [20, 3, 20]


def test_image_limit_leaves_y_l_as_it_is() -> None:
    labels = np.arange(200) % 10
    few, all_ = (label_pairs(labels, np.arange(len(labels)), 10, replace(LABEL, max_images=m)) for m in (100, None))
    assert few["y_l"].to_numpy().tolist() == all_["y_l"].to_numpy()[few["index"].to_numpy()].tolist()


def test_labels_that_make_no_pairs() -> None:
    with pytest.raises(DataError, match="one class only"):
        label_pairs(np.zeros(5, dtype=np.int64), np.arange(5), 1, LABEL)
    with pytest.raises(DataError, match="4 images of 2 classes leave val empty"):
        label_pairs(np.array([0, 1, 0, 1]), np.arange(4), 2, LABEL)


def test_fractions_that_leave_nothing() -> None:
    with pytest.raises(ParamsError, match=r"params.yaml: label_pairs: val_fraction \+ test_fraction"):
        label_pairs(np.arange(4), np.arange(4), 4, replace(LABEL, val_fraction=0.5, test_fraction=0.5))


@given(st.lists(st.integers(0, 60), min_size=60, max_size=200), st.integers(0, 5), st.none() | st.integers(40, 200))
def test_a_group_shares_a_split_and_the_sizes_are_kept(drawn: list[int], seed: int, max_images: int | None) -> None:
    groups = np.array(drawn)
    labels = np.random.default_rng(seed).integers(0, 3, len(groups))
    try:
        pairs = label_pairs(labels, groups, 3, replace(LABEL, seed=seed, max_images=max_images))
    except DataError:
        return
    split, group = np.array(pairs["split"].to_pylist()), groups[pairs["index"].to_numpy()]
    assert all(len(set(split[group == one])) == 1 for one in set(group.tolist()))
    largest = np.bincount(group).max()
    assert abs((split == "test").sum() - 0.2 * len(split)) <= largest / 2 + 0.5
    assert abs((split != "train").sum() - 0.3 * len(split)) <= largest / 2 + 1


def test_groups_are_stratified() -> None:
    """Ten copies of each of 60 images a class: six classes keep their shares to within a group."""
    labels, groups = np.repeat(np.arange(360) % 6, 10), np.repeat(np.arange(360), 10)
    pairs = label_pairs(labels, groups, 6, LABEL)
    split, y_w = np.array(pairs["split"].to_pylist()), pairs["y_w"].to_numpy()
    for label in range(6):
        assert abs((split[y_w == label] == "test").sum() - 120) <= 10
        assert abs((split[y_w == label] == "val").sum() - 60) <= 10


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(DataError, match="20 images of 2 classes leave "):
        label_pairs(np.arange(20) % 2, np.zeros(20, dtype=np.int64), 2, LABEL)


def test_the_summary_by_hand() -> None:
    """Images 0 and 1 are copies, 0, 1 and 4 near copies; image 3 is no pair."""
    table = pa.table([[0, 1, 2, 4], ["train", "test", "test", "train"], [0, 0, 1, 1], [1, 1, 0, 0]], IMAGE_PAIRS_SCHEMA)
    copies = pa.table({"exact": ["a", "a", "c", "c", "e"], "perceptual": ["a", "a", "c", "c", "a"]})
    assert split_summary(table, copies, ["cat", "dog"]) == {
        "images": {"train": {"cat": 1, "dog": 1}, "val": {"cat": 0, "dog": 0}, "test": {"cat": 1, "dog": 1}},
        "straddling": {"exact": 2, "perceptual": 3},
    }


def test_the_stage_lets_no_copy_straddle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    stage.IMAGES.mkdir(parents=True)
    labels = np.arange(200) % 4
    exact, perceptual = ([f"{n // size:03}" for n in range(200)] for size in (2, 8))
    save_file({"images": np.zeros((200, 1, 2, 2), np.uint8), "labels": labels}, stage.IMAGES / "images.safetensors")
    pq.write_table(pa.table({"exact": exact, "perceptual": perceptual}), stage.IMAGES / "rows.parquet")
    write_json(stage.IMAGES / "classes.json", list("abcd"))
    stage.main(LABEL)
    summary = read_json(stage.OUT / "summary.json")
    assert summary["straddling"] == {"exact": 0, "perceptual": 0}
    assert sum(sum(classes.values()) for classes in summary["images"].values()) == 200
    # Dealt one by one, they would straddle.
    copies = pq.read_table(stage.IMAGES / "rows.parquet")
    alone = split_summary(label_pairs(labels, np.arange(200), 4, LABEL), copies, list("abcd"))
    assert all(count > 50 for count in alone["straddling"].values())
