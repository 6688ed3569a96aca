"""The study of wrong answers about images: what is asked and answered, by hand, and a tiny run of it."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from paths import ROOT
from safetensors.numpy import save_file
from torch import nn

from benchmarks import noisy_labels
from benchmarks.noisy_labels import ARMS, SETTINGS, Answers, Sizes, answered, asked, wrong_votes
from prefdag.runtime.artifacts import write_json

LOGPS = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.5, 0.1, 0.4]]).log()


def test_the_true_class_is_the_better_of_the_top_two() -> None:
    """In the first two rows it is the first or the second. In the third it is neither, and either may be the better."""
    better, worse = asked("top two", torch.tensor([0, 1, 1]), LOGPS, np.random.default_rng(0))
    assert (better[:2].tolist(), worse[:2].tolist()) == ([0, 1], [1, 2])
    assert {int(better[2]), int(worse[2])} == {0, 2}


def test_a_random_other_class_is_never_the_true_one() -> None:
    truth = torch.arange(300) % 3
    better, worse = asked("random", truth, LOGPS[:1].expand(300, 3), np.random.default_rng(0))
    assert torch.equal(better, truth)
    assert (worse != truth).all()
    assert 100 < int(((worse - truth) % 3 == 1).sum()) < 200


@pytest.mark.parametrize(("wrong", "swapped", "share"), [((0.0,), False, 1.0), ((1.0,), True, 1.0)])
def test_wrong_answers_swap_the_pair(wrong: tuple[float, ...], swapped: bool, share: float) -> None:
    better, worse = torch.tensor([0, 1]), torch.tensor([1, 2])
    y_w, y_l, shares = answered(better, worse, wrong, np.random.default_rng(0))
    assert torch.equal(y_w, worse if swapped else better)
    assert torch.equal(y_l, better if swapped else worse)
    assert shares.tolist() == [share, share]


def test_the_share_of_votes_is_that_of_the_majority() -> None:
    """Of three people the first is always right, the others never."""
    y_w, y_l, shares = answered(torch.tensor([0]), torch.tensor([1]), (0.0, 1.0, 1.0), np.random.default_rng(0))
    assert (y_w.tolist(), y_l.tolist()) == ([1], [0])
    assert shares.tolist() == pytest.approx([2 / 3])


def test_how_often_a_majority_is_wrong() -> None:
    """Three people who err with 0.2: 3 * 0.2^2 * 0.8 + 0.2^3."""
    assert wrong_votes((0.4,)) == pytest.approx(0.4)
    assert wrong_votes((0.2, 0.2, 0.2)) == pytest.approx(0.104)


def test_the_losses_at_the_reference() -> None:
    """The policy is the reference, y_w has 0.7 and y_l 0.2 of its probability, and 40% of the answers are wrong."""
    pair = torch.tensor([0]), torch.tensor([1]), torch.tensor([1.0])
    answers = Answers(LOGPS[:1], LOGPS[:1], *pair, wrong=0.4)
    expected = {
        "cross-entropy": -math.log(0.7),
        "cross-entropy, corrected": -math.log(0.6 * 0.7 + 0.4 * 0.2),
        "cross-entropy, smoothed": -0.6 * math.log(0.7) - 0.4 * math.log(0.7 * 0.2 * 0.1) / 3,
        "cross-entropy, bootstrapped": -0.5 * math.log(0.7) - 0.5 * sum(p * math.log(p) for p in (0.7, 0.2, 0.1)),
        "DPO": math.log(2),
        "DPO, smoothed": math.log(2),
    }
    for name, value in expected.items():
        task = ARMS[name].task(answers, 0.5)
        losses, _ = task.loss(task.forward(nn.Identity(), [0], 0))
        assert losses.tolist() == pytest.approx([value]), name


@pytest.mark.slow
def test_a_tiny_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every arm of two settings is measured once a seed, a second run adds nothing, and the table has all arms."""
    images = tmp_path / "data/validated/images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 3
    pixels = (60 * labels[:, None, None, None] + rng.integers(0, 60, (240, 1, 16, 16))).astype(np.uint8)
    save_file({"images": pixels, "labels": labels}, images / "images.safetensors")
    write_json(images / "classes.json", ["a", "b", "c"])
    pq.write_table(pa.table({"perceptual": [f"{i}" for i in range(240)]}), images / "rows.parquet")
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    chosen = ("top two, five annotators", "random, 40% wrong, reference trained on them")
    monkeypatch.setattr(noisy_labels, "SETTINGS", {name: SETTINGS[name] for name in chosen})
    monkeypatch.setattr(noisy_labels, "SEEDS", (0, 1))
    results = tmp_path / "results.csv"
    noisy_labels.run(tmp_path, results, Sizes(64, 64, 1))
    rows = pd.read_csv(results)
    measured = rows.dropna(subset="accuracy")
    arms = {name: {"reference", *noisy_labels.arms_of(SETTINGS[name])} for name in chosen}
    assert {name: set(part["arm"]) for name, part in measured.groupby("setting")} == arms
    assert (measured.groupby(["setting", "arm"])["seed"].apply(list).map(lambda seeds: seeds == [0, 1])).all()
    tries = rows[rows["seed"].eq(0) & rows["arm"].eq("DPO")].groupby("setting")
    assert (tries.size() == 3).all()
    assert all(part.iloc[-1]["val_cross_entropy"] == part["val_cross_entropy"].min() for _, part in tries)
    before = results.read_bytes()
    noisy_labels.run(tmp_path, results, Sizes(64, 64, 1))
    assert results.read_bytes() == before
    assert noisy_labels.table(results).count("| DPO, shares of votes |") == 1
