"""Pairs of classes for images, in splits that share no copies."""

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
from prefdag.image.label_pairs import IMAGE_PAIRS_SCHEMA, label_pairs, split_summary
from prefdag.lifecycle.errors import DataError, ParamsError
from prefdag.runtime.artifacts import read_json, write_json
from stages import label_pairs as stage

LABEL = LabelPairs(max_images=None, val_fraction=0.1, test_fraction=0.2, seed=0)


@pytest.mark.slow
@given(st.integers(2, 6), st.integers(0, 5), st.none() | st.integers(30, 200))
def test_label_pairs_are_stratified_and_never_pair_a_class_with_itself(
    n_classes: int, seed: int, max_images: int | None
) -> None:
    labels = np.random.default_rng(seed).permutation(np.arange(180) % n_classes)
    pairs = label_pairs(labels, np.arange(len(labels)), n_classes, replace(LABEL, seed=seed, max_images=max_images))
    assert pairs.schema.equals(IMAGE_PAIRS_SCHEMA)
    index, y_w, y_l = (pairs[name].to_numpy() for name in ("index", "y_w", "y_l"))
    assert (y_w == labels[index]).all()
    assert (y_l != y_w).all()
    assert ((y_l >= 0) & (y_l < n_classes)).all()
    assert (np.diff(index) > 0).all()  # so no image appears twice, and splits are disjoint
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
    # Binomial(9000, 1/9): its mean, and five standard deviations.
    assert (np.abs(counts[1:] - 9000 / 9) < 5 * np.sqrt(9000 * 1 / 9 * 8 / 9)).all()


def test_max_images_takes_all_images_of_a_small_class() -> None:
    labels = np.array([0] * 50 + [1] * 3 + [2] * 50)
    pairs = label_pairs(labels, np.arange(len(labels)), 3, replace(LABEL, max_images=43, val_fraction=0.0))
    assert np.bincount(pairs["y_w"].to_numpy()).tolist() == [(43 - 3) / 2, 3, (43 - 3) / 2]


def test_max_images_does_not_change_y_l() -> None:
    labels = np.arange(200) % 10
    few, many = (label_pairs(labels, np.arange(len(labels)), 10, replace(LABEL, max_images=m)) for m in (100, None))
    assert few["y_l"].to_numpy().tolist() == many["y_l"].to_numpy()[few["index"].to_numpy()].tolist()


def test_labels_that_make_no_pairs_are_refused() -> None:
    with pytest.raises(DataError, match="one class only"):
        label_pairs(np.zeros(5, dtype=np.int64), np.arange(5), 1, LABEL)
    with pytest.raises(DataError, match="4 images of 2 classes leave val empty"):
        label_pairs(np.array([0, 1, 0, 1]), np.arange(4), 2, LABEL)


def test_fractions_that_leave_no_training_images_are_refused() -> None:
    with pytest.raises(ParamsError, match=r"params.yaml: label_pairs: val_fraction \+ test_fraction"):
        label_pairs(np.arange(4), np.arange(4), 4, replace(LABEL, val_fraction=0.5, test_fraction=0.5))


@pytest.mark.slow
@given(st.lists(st.integers(0, 60), min_size=60, max_size=200), st.integers(0, 5), st.none() | st.integers(40, 200))
def test_a_group_stays_in_one_split_and_splits_keep_their_sizes(
    drawn: list[int], seed: int, max_images: int | None
) -> None:
    groups = np.array(drawn)
    labels = np.random.default_rng(seed).integers(0, 3, len(groups))
    try:
        pairs = label_pairs(labels, groups, 3, replace(LABEL, seed=seed, max_images=max_images))
    except DataError:
        return
    split, group = np.array(pairs["split"].to_pylist()), groups[pairs["index"].to_numpy()]
    assert all(len(set(split[group == number])) == 1 for number in set(group.tolist()))
    largest = np.bincount(group).max()
    assert abs((split == "test").sum() - 0.2 * len(split)) <= largest / 2 + 0.5
    assert abs((split != "train").sum() - 0.3 * len(split)) <= largest / 2 + 1


def test_groups_are_stratified() -> None:
    """Ten copies of each of 60 images per class: in six classes, the splits have their shares to within a group."""
    labels, groups = np.repeat(np.arange(360) % 6, 10), np.repeat(np.arange(360), 10)
    pairs = label_pairs(labels, groups, 6, LABEL)
    split, y_w = np.array(pairs["split"].to_pylist()), pairs["y_w"].to_numpy()
    for label in range(6):
        assert abs((split[y_w == label] == "test").sum() - 0.2 * 600) <= 10
        assert abs((split[y_w == label] == "val").sum() - 0.1 * 600) <= 10


def test_a_single_group_cannot_be_split() -> None:
    with pytest.raises(DataError, match="20 images of 2 classes leave "):
        label_pairs(np.arange(20) % 2, np.zeros(20, dtype=np.int64), 2, LABEL)


def test_the_summary_by_hand() -> None:
    """Images 0 and 1 are exact copies; 0, 1 and 4 are near copies; image 3 is in no pair."""
    table = pa.table([[0, 1, 2, 4], ["train", "test", "test", "train"], [0, 0, 1, 1], [1, 1, 0, 0]], IMAGE_PAIRS_SCHEMA)
    copies = pa.table({"exact": ["a", "a", "c", "c", "e"], "perceptual": ["a", "a", "c", "c", "a"]})
    assert split_summary(table, copies, ["cat", "dog"]) == {
        "images": {"train": {"cat": 1, "dog": 1}, "val": {"cat": 0, "dog": 0}, "test": {"cat": 1, "dog": 1}},
        "straddling": {"exact": 2, "perceptual": 3},  # images 0 and 1; images 0, 1 and 4
    }


def test_the_stage_keeps_copies_in_one_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    # If images were split one by one, copies would end up in several splits.
    copies = pq.read_table(stage.IMAGES / "rows.parquet")
    alone = split_summary(label_pairs(labels, np.arange(200), 4, LABEL), copies, list("abcd"))
    assert all(count > 50 for count in alone["straddling"].values())
