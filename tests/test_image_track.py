"""The image track: shapes, augmentation as a pure function, the DPO stage from its first step, and its metrics."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import training, weights
from torch import Tensor, nn

from prefdag.artifacts import sha256
from prefdag.config import DpoImage
from prefdag.dpo import session
from prefdag.dpo.checkpoint import Checkpoints
from prefdag.dpo.trainer import History, Task, fit
from prefdag.errors import DataError
from prefdag.image import evaluate
from prefdag.image import model as resnet
from prefdag.image.classify import class_logps, classification, predict, view
from prefdag.image.data import Augmentation, ImagePairs, load_splits, normalise
from stages import control_image, dpo_image

SMALL = resnet.Architecture(arch="resnet18", stem="imagenet", dropout=0.2, channels=1, classes=4)
IDENTITY = Augmentation(max_shift=0, flip=False, seed=0)


pytestmark = pytest.mark.usefixtures("one_thread")


def random_images(n: int, channels: int = 1, size: int = 12, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)


def split_of(n: int) -> ImagePairs:
    labels = torch.arange(n) % 4
    return ImagePairs([10 + i for i in range(n)], random_images(n), labels, (labels + 1) % 4)


class Brightness(nn.Module):
    """Logits (m, -m) of an image's mean m in -1..1."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean(dim=(1, 2, 3))
        return torch.stack([mean, -mean], dim=1)


# Models


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_a_classifier_maps_images_to_classes(stem: Any, channels: int) -> None:
    model = resnet.build(resnet.Architecture("resnet18", stem, 0.0, channels, 7)).eval()
    maps: list[torch.Size] = []
    model.layer4.register_forward_hook(lambda module, args, output: maps.append(output.shape))
    assert class_logps(model, random_images(2, channels, 32)).shape == (2, 7)
    # The imagenet stem divides the size by 4, the cifar stem does not; three stages halve it.
    assert maps == [(2, 512, 1, 1) if stem == "imagenet" else (2, 512, 4, 4)]


@pytest.mark.parametrize(("arch", "blocks"), [("resnet18", 8), ("resnet34", 16), ("resnet50", 16)])
def test_every_architecture_is_there(arch: Any, blocks: int) -> None:
    model = resnet.build(resnet.Architecture(arch, "cifar", 0.1, 3, 10))
    assert sum(len(layer) for layer in (model.layer1, model.layer2, model.layer3, model.layer4)) == blocks
    head = [(type(m).__name__, getattr(m, "p", None), getattr(m, "out_features", None)) for m in model.fc]
    width = 2048 if arch == "resnet50" else 512
    assert head == [("Dropout", 0.1, None), ("Linear", None, width), ("Dropout", 0.1, None), ("Linear", None, 10)]


def test_a_saved_classifier_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = resnet.build(SMALL).train()
    model(normalise(random_images(4)))  # the batch statistics are no longer those of a fresh model
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        resnet.save(model, SMALL, tmp_path / name)
    again, architecture = resnet.load(tmp_path / "a")
    assert architecture == SMALL
    assert not any(module.training for module in again.modules())
    before, after = weights(model), weights(again)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(class_logps(model.eval(), random_images(3)), class_logps(again, random_images(3)))
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b")


# Images


def test_normalise_maps_bytes_to_minus_one_to_one() -> None:
    images = torch.tensor([[[[0, 255, 51]]]], dtype=torch.uint8)
    torch.testing.assert_close(normalise(images), torch.tensor([[[[-1.0, 1.0, -0.6]]]]))


def test_an_augmented_image_depends_on_seed_epoch_and_row_alone() -> None:
    images = random_images(9)
    augment = Augmentation(max_shift=3, flip=True, seed=1)
    together = augment(images, range(9), epoch=2)
    torch.manual_seed(5)
    assert torch.equal(augment(images[[4]], [4], epoch=2)[0], together[4])
    assert torch.equal(augment(images[[7, 4]], [7, 4], epoch=2), together[[7, 4]])
    assert not torch.equal(augment(images, range(9), epoch=3), together)
    assert not torch.equal(augment(images, range(1, 10), epoch=2), together)
    assert not torch.equal(Augmentation(3, True, 2)(images, range(9), epoch=2), together)


def test_no_shift_and_no_flip_is_the_image_itself() -> None:
    images = random_images(5)
    assert torch.equal(IDENTITY(images, range(5), epoch=0), images)


def crops(image: Tensor, flip: bool) -> list[list[int]]:
    """The nine crops of a 2x2 image [1 2; 3 4] in a border of one zero, and their mirror images."""
    padded = [[0, 0, 0, 0], [0, 1, 2, 0], [0, 3, 4, 0], [0, 0, 0, 0]]
    found = [[padded[t + i][l + j] for i in (0, 1) for j in (0, 1)] for t in range(3) for l in range(3)]  # noqa: E741
    return found + ([[c[1], c[0], c[3], c[2]] for c in found] if flip else [])


@pytest.mark.parametrize("flip", [False, True])
def test_shifted_images_are_crops_of_the_padded_one(flip: bool) -> None:
    """Each of the crops worked out by hand appears, and nothing else: [0 0; 0 1], [0 0; 1 2], ..., [4 0; 0 0]."""
    image = torch.tensor([[[1, 2], [3, 4]]], dtype=torch.uint8)
    rows = range(400)
    augmented = Augmentation(max_shift=1, flip=flip, seed=0)(image.expand(400, 1, 2, 2), rows, epoch=0)
    expected = {tuple(crop) for crop in crops(image, flip)}
    assert {tuple(crop) for crop in augmented.flatten(1).tolist()} == expected


def test_half_of_the_images_are_mirrored() -> None:
    image = torch.tensor([[[[1, 2]]]], dtype=torch.uint8).expand(1000, 1, 1, 2)
    mirrored = (Augmentation(0, True, 0)(image, range(1000), epoch=0)[:, 0, 0, 0] == 2).sum()
    assert 420 <= mirrored <= 580  # five standard deviations of sqrt(250)


def test_validation_sees_images_as_they_are() -> None:
    split = split_of(6)
    augment = Augmentation(max_shift=4, flip=True, seed=0)
    assert torch.equal(view(split, [5, 2], None, augment), split.images[[5, 2]])
    assert torch.equal(view(split, [5, 2], 1, augment), augment(split.images[[5, 2]], [5, 2], 1))


def test_classification_by_hand() -> None:
    """All white, m = 1: logits 1, -1; -log p is ln(1 + exp(-2)) = 0.126928 for class 0, 2.126928 for class 1."""
    white = torch.full((2, 1, 4, 4), 255, dtype=torch.uint8)
    split = ImagePairs([3, 8], white, torch.tensor([0, 1]), torch.tensor([1, 0]))
    task = classification(split, IDENTITY)
    losses, metrics = task.objective(Brightness(), [0, 1], None)
    assert losses.tolist() == pytest.approx([0.126928, 2.126928], abs=1e-5)
    assert metrics["accuracy"].tolist() == [1.0, 0.0]
    assert task.weights == [1.0, 1.0]
    assert task.ids == ["image 3", "image 8"]
    assert torch.equal(task.objective(Brightness(), [1], None)[0], losses[1:])


def test_predictions_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    model = resnet.build(SMALL).eval()
    images = random_images(7)
    torch.testing.assert_close(predict(model, images, 3), class_logps(model, images), rtol=1e-5, atol=1e-5)


# The stages


def striped_images() -> Tensor:
    """Noise, and a bright stripe whose place tells the class: image 23 - i is of class i % 4."""
    images = random_images(24, size=16) // 4
    for i in range(24):
        images[23 - i, :, 4 * (i % 4) : 4 * (i % 4) + 4] += 150
    return images


IMAGES = striped_images()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with 24 images in three splits and a reference that has seen them; stages run in it."""
    monkeypatch.chdir(tmp_path)
    for folder in (dpo_image.IMAGES, dpo_image.PAIRS, dpo_image.REFERENCE):
        folder.mkdir(parents=True)
    labels = np.arange(24) % 4
    save_file({"images": IMAGES}, dpo_image.IMAGES / "images.safetensors")
    split = ["train"] * 16 + ["val"] * 4 + ["test"] * 4
    frame = pd.DataFrame({"index": np.arange(24)[::-1].copy(), "split": split, "y_w": labels, "y_l": (labels + 1) % 4})
    frame.to_parquet(dpo_image.PAIRS / "pairs.parquet")
    torch.manual_seed(0)
    reference = resnet.build(SMALL).train()
    for _ in range(3):
        reference(normalise(IMAGES))
    resnet.save(reference, SMALL, dpo_image.REFERENCE)
    return tmp_path


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[History, nn.Module]]:
    """What each stage trained, in the place of `train_stage` and its tracking."""
    results: list[tuple[History, nn.Module]] = []

    def train_stage(
        stage: str,
        params: Mapping[str, Any],
        model: nn.Module,
        train: Task,
        validation: Task,
        config: Any,
        seed: int,
        output: Path,
        save: Any,
        check_start: Any = lambda metrics: None,
    ) -> None:
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        history = fit(
            model,
            train,
            validation,
            config,
            seed=seed,
            checkpoints=checkpoints,
            log=lambda *_: None,
            check_start=check_start,
        )
        output.mkdir(parents=True)
        save(output)
        results.append((history, model))

    monkeypatch.setattr(session, "train_stage", train_stage)
    return results


SETTINGS = DpoImage(
    label_smoothing=0.0, max_shift=1, flip=False, training=training(epochs=2, learning_rate=3e-4, batch_size=8)
)


def test_dpo_starts_at_ln_2_and_learns(project: Path, ran: list[tuple[History, nn.Module]]) -> None:
    dpo_image.main.main(0.5, "sigmoid", 0, SETTINGS)
    history, _ = ran[0]
    first, last = history.train[0], history.validation[-1]
    assert first["loss"] == pytest.approx(float(np.log(2)), abs=1e-7)
    zeros = {name: first[name] for name in ("rewards/chosen", "rewards/rejected", "rewards/margin")}
    assert zeros == dict.fromkeys(zeros, 0.0)
    assert first["rewards/accuracy"] == 0.5
    assert history.validation[0]["loss"] == pytest.approx(float(np.log(2)), abs=1e-7)
    assert history.train[-1]["loss"] < 0.6
    assert last["step"] == 4


def test_dpo_leaves_the_reference_and_all_batch_statistics_alone(
    project: Path, ran: list[tuple[History, nn.Module]]
) -> None:
    before = sha256(dpo_image.REFERENCE)
    reference = weights(resnet.load(dpo_image.REFERENCE)[0])
    dpo_image.main.main(0.5, "sigmoid", 0, SETTINGS)
    assert sha256(dpo_image.REFERENCE) == before
    policy, architecture = resnet.load(dpo_image.POLICY)
    assert architecture == SMALL
    found = weights(policy)
    changed = {name for name, t in found.items() if not torch.equal(t, reference[name])}
    assert changed
    assert changed <= {name for name, _ in policy.named_parameters()}
    assert all(torch.equal(found[name], t) for name, t in weights(ran[0][1]).items())


def test_dpo_is_a_function_of_its_seed(project: Path, ran: list[tuple[History, nn.Module]]) -> None:
    once = dataclasses.replace(SETTINGS, training=training(batch_size=8))
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        dpo_image.main.main(0.5, "sigmoid", seed, once)
        dpo_image.POLICY.rename(name)
    assert sha256(Path("a")) == sha256(Path("b")) != sha256(Path("c"))


def test_the_control_starts_where_dpo_does(project: Path, ran: list[tuple[History, nn.Module]]) -> None:
    """The same rows and shifts in the same order under the cross-entropy of the reference."""
    control_image.main.main(0, SETTINGS)
    dpo_image.main.main(0.5, "sigmoid", 0, SETTINGS)
    control, dpo = ran[0][0], ran[1][0]
    assert control.train[0]["loss"] == pytest.approx(-dpo.train[0]["logps/chosen"], abs=1e-5)
    assert control.train[-1]["loss"] < control.train[0]["loss"]
    assert resnet.load(control_image.CONTROL)[1] == SMALL


def test_splits_hold_their_images_and_labels(project: Path) -> None:
    splits = load_splits(dpo_image.IMAGES, dpo_image.PAIRS)
    assert {name: len(split) for name, split in splits.items()} == {"train": 16, "val": 4, "test": 4}
    assert splits["val"].index == [7, 6, 5, 4]
    assert torch.equal(splits["val"].images, IMAGES[[7, 6, 5, 4]])
    assert splits["val"].y_w.tolist() == [0, 1, 2, 3]
    assert splits["val"].y_l.tolist() == [1, 2, 3, 0]
    assert splits["val"].ids[0] == "image 7"


def test_a_split_without_images_is_named(project: Path) -> None:
    """`label_pairs.val_fraction: 0` is within its range."""
    frame = pd.read_parquet(dpo_image.PAIRS / "pairs.parquet")
    frame[frame["split"] != "val"].to_parquet(dpo_image.PAIRS / "pairs.parquet")
    with pytest.raises(DataError, match="val"):
        load_splits(dpo_image.IMAGES, dpo_image.PAIRS)


# Metrics

# Probabilities of two classes for four images whose true class is 0: right, right, wrong, and a wrong one.
REFERENCE = torch.tensor([[0.5, 0.5], [0.6, 0.4], [0.4, 0.6], [0.2, 0.8]]).log()
POLICY = torch.tensor([[0.75, 0.25], [0.8, 0.2], [0.6, 0.4], [0.1, 0.9]]).log()
TEST = ImagePairs([4, 5, 6, 7], random_images(4), torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64))
LOGPS = {"reference": REFERENCE, "policy": POLICY, "control": REFERENCE.flip(1)}


def test_metrics_by_hand() -> None:
    """Reference right on 2 of 4 (the tie goes to class 0), policy on 3, control, the mirror image, on 3.

    Cross-entropy of the policy -(ln .75 + ln .8 + ln .6 + ln .1) / 4 = 3.324236 / 4
    KL: .75 ln 1.5 + .25 ln .5 = .130812; .8 ln 4/3 + .2 ln .5 = .091516; .6 ln 1.5 + .4 ln 2/3 = .081093;
        .1 ln .5 + .9 ln 9/8 = .036690; mean .085028
    Rewards, beta 2, chosen: ln 1.5, ln 4/3, ln 1.5, ln .5 = .405465 .287682 .405465 -.693147, mean .101366, times 2
        rejected: ln .5, ln .5, ln 2/3, ln 9/8 = -.693147 -.693147 -.405465 .117783, mean -.418494, times 2
    """
    found = evaluate.metrics(TEST, LOGPS, beta=2.0)
    assert found["n_test"] == 4
    assert [found[name]["accuracy"] for name in evaluate.MODELS] == [0.5, 0.75, 0.75]
    assert found["policy"]["cross_entropy"] == pytest.approx(0.831059, abs=1e-5)
    assert found["kl"] == pytest.approx(0.085028, abs=1e-5)
    rewards = found["rewards"]
    assert rewards["chosen"] == pytest.approx(0.202732, abs=1e-5)
    assert rewards["rejected"] == pytest.approx(-0.836988, abs=1e-5)
    assert rewards["margin"] == pytest.approx(1.039720, abs=1e-5)
    assert rewards["accuracy"] == 0.75
    for part in (*(found[name] for name in evaluate.MODELS), rewards):
        assert part["accuracy_low"] < part["accuracy"] < part["accuracy_high"]


def test_a_policy_that_is_its_reference_has_no_kl_and_no_reward() -> None:
    found = evaluate.metrics(TEST, {**LOGPS, "policy": REFERENCE}, beta=2.0)
    assert found["kl"] == 0
    assert (found["rewards"]["margin_low"], found["rewards"]["margin_high"]) == (0, 0)


def test_predictions_by_hand() -> None:
    frame = evaluate.predictions(TEST, LOGPS)
    assert frame["index"].tolist() == [4, 5, 6, 7]
    assert frame["label"].tolist() == [0] * 4
    assert frame["y_l"].tolist() == [1] * 4
    assert frame["policy"].tolist() == [0, 0, 0, 1]
    assert frame["policy_probability"].tolist() == pytest.approx([0.75, 0.8, 0.6, 0.1])
    assert frame["control_probability"].tolist() == pytest.approx([0.5, 0.4, 0.6, 0.8])
