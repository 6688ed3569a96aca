"""The image track: models, augmentation as a pure function, the DPO stage from its first step, and the metrics."""

import copy
import dataclasses
from collections.abc import Mapping
from math import exp, log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from tasks import NO_OPTIONS, objective_of, preference_of, slow, without_tracking
from tiny_models import training, weights
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from prefdag.config.constraints import Constraint
from prefdag.config.dpo_image import DpoImage
from prefdag.config.health import ImageHealth
from prefdag.config.loss_options import LossOptions
from prefdag.config.reference import Reference
from prefdag.image import evaluate
from prefdag.image import model as resnet
from prefdag.image.classification_task import classification_task
from prefdag.image.classify import class_logps, predict
from prefdag.image.data import Augmentation, ImagePairs, augmented, load_splits, normalise
from prefdag.image.dpo_task import reference_logps
from prefdag.lifecycle.errors import DataError, NumericError, ParamsError
from prefdag.report.page.results import read_csv
from prefdag.runtime.artifacts import read_json, sha256, write_json
from prefdag.runtime.yaml import flatten
from prefdag.train.checkpoint import Checkpoints
from prefdag.train.loop import History
from stages import control_image, dpo_image, evaluate_image, health_image

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
    """A model whose logits are (m, -m), where m in -1..1 is the mean of the image."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean(dim=(1, 2, 3))
        return torch.stack([mean, -mean], dim=1)


# Models


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_a_classifier_maps_images_to_classes(stem: Any, channels: int) -> None:
    model = resnet.build(resnet.Architecture("resnet18", stem, 0.0, channels, 7)).eval()
    maps: list[torch.Size] = []
    model.layer4.register_forward_hook(lambda module, args, output: maps.append(output.shape))
    assert class_logps(model, random_images(2, channels, 32)).shape == (2, 7)
    # The imagenet stem divides the size by 4, the cifar stem does not; three stages halve it.
    size = 32 // 4 // 2**3 if stem == "imagenet" else 32 // 2**3
    assert maps == [(2, 512, size, size)]


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "blocks"), [("resnet18", 8), ("resnet34", 16), ("resnet50", 16)])
def test_every_architecture_can_be_built(arch: Any, blocks: int) -> None:
    model = resnet.build(resnet.Architecture(arch, "cifar", 0.1, 3, 10))
    assert sum(len(layer) for layer in (model.layer1, model.layer2, model.layer3, model.layer4)) == blocks
    head = [(type(m).__name__, getattr(m, "p", None), getattr(m, "out_features", None)) for m in model.fc]
    width = 2048 if arch == "resnet50" else 512
    assert head == [("Dropout", 0.1, None), ("Linear", None, width), ("Dropout", 0.1, None), ("Linear", None, 10)]


@pytest.mark.slow
def test_a_saved_classifier_loads_unchanged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = resnet.build(SMALL).train()
    model(normalise(random_images(4)))  # changes the batch statistics
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        resnet.save(model, SMALL, tmp_path / name)
    loaded, architecture = resnet.load(tmp_path / "a")
    assert architecture == SMALL
    assert not any(module.training for module in loaded.modules())
    before, after = weights(model), weights(loaded)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(class_logps(model.eval(), random_images(3)), class_logps(loaded, random_images(3)))
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b")


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_our_convolution_equals_torchs(kernel: int, stride: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients in float64. Ours calls torch's if and only if the output has more than one pixel."""
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 5, kernel, stride, kernel // 2, bias=False).double().to(memory_format=torch.channels_last)
    ours = copy.deepcopy(plain)
    ours.__class__ = resnet.Convolution
    images = torch.randn(4, 3, size, size, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    results = []
    for convolution in (plain, ours):
        x = images.clone().requires_grad_()
        maps = convolution(x)
        maps.square().sum().backward()
        results.append((maps, x.grad, convolution.weight.grad))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: None)
    assert (ours(images) is None) == (results[0][0].shape[2:] != (1, 1))


@pytest.mark.slow
def test_every_convolution_of_a_classifier_is_ours() -> None:
    model = resnet.build(SMALL)
    assert {type(module) for module in model.modules() if isinstance(module, nn.Conv2d)} == {resnet.Convolution}


# Images


def test_normalise_maps_bytes_to_minus_one_to_one() -> None:
    images = torch.tensor([[[[0, 255, 51]]]], dtype=torch.uint8)
    torch.testing.assert_close(normalise(images), torch.tensor([[[[0 / 127.5 - 1, 255 / 127.5 - 1, 51 / 127.5 - 1]]]]))


def test_an_augmented_image_depends_only_on_seed_epoch_and_row() -> None:
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
    """The nine crops of the image [1 2; 3 4] with a border of one zero and, with `flip`, their mirror images."""
    padded = [[0, 0, 0, 0], [0, 1, 2, 0], [0, 3, 4, 0], [0, 0, 0, 0]]
    corners = [(top, left) for top in range(3) for left in range(3)]
    cut = [[padded[top + i][left + j] for i in (0, 1) for j in (0, 1)] for top, left in corners]
    return cut + ([[c[1], c[0], c[3], c[2]] for c in cut] if flip else [])


@pytest.mark.parametrize("flip", [False, True])
def test_shifted_images_are_crops_of_the_padded_one(flip: bool) -> None:
    """All of the crops [0 0; 0 1], [0 0; 1 2], ..., [4 0; 0 0] appear, and no others."""
    image = torch.tensor([[[1, 2], [3, 4]]], dtype=torch.uint8)
    rows = range(400)
    augmented = Augmentation(max_shift=1, flip=flip, seed=0)(image.expand(400, 1, 2, 2), rows, epoch=0)
    expected = {tuple(crop) for crop in crops(image, flip)}
    assert {tuple(crop) for crop in augmented.flatten(1).tolist()} == expected


def test_half_of_the_images_are_mirrored() -> None:
    image = torch.tensor([[[[1, 2]]]], dtype=torch.uint8).expand(1000, 1, 1, 2)
    mirrored = (Augmentation(0, True, 0)(image, range(1000), epoch=0)[:, 0, 0, 0] == 2).sum()
    assert abs(mirrored - 1000 / 2) < 5 * sqrt(1000 * 1 / 2 * 1 / 2)


def test_validation_sees_images_as_they_are() -> None:
    split = split_of(6)
    augment = Augmentation(max_shift=4, flip=True, seed=0)
    assert torch.equal(augmented(split, [5, 2], None, augment), split.images[[5, 2]])
    assert torch.equal(augmented(split, [5, 2], 1, augment), augment(split.images[[5, 2]], [5, 2], 1))


def test_classification_by_hand() -> None:
    """White images, m = 1: the logits are 1 and -1."""
    white = torch.full((2, 1, 4, 4), 255, dtype=torch.uint8)
    split = ImagePairs([3, 8], white, torch.tensor([0, 1]), torch.tensor([1, 0]))
    task = classification_task(split, IDENTITY)
    losses, metrics = objective_of(task)(Brightness(), [0, 1], None)
    assert losses.tolist() == pytest.approx([log(1 + exp(-2)), log(1 + exp(2))], abs=1e-5)
    assert metrics["accuracy"].tolist() == [1.0, 0.0]
    assert task.weights == [1.0, 1.0]
    assert task.ids == ["image 3", "image 8"]
    assert torch.equal(objective_of(task)(Brightness(), [1], None)[0], losses[1:])


def test_predictions_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    model = resnet.build(SMALL).eval()
    images = random_images(7)
    torch.testing.assert_close(predict(model, images, 3), class_logps(model, images), rtol=1e-5, atol=1e-5)


# The stages


def striped_images() -> Tensor:
    """Noise with a bright stripe whose position shows the class: image 23 - i has class i % 4."""
    images = random_images(24, size=16) // 4
    for i in range(24):
        images[23 - i, :, 4 * (i % 4) : 4 * (i % 4) + 4] += 150
    return images


IMAGES = striped_images()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory for stages: 24 images in three splits, and a reference with their batch statistics.

    resnet18 gets one block per layer instead of two, because these tests are about the stages, not the classifier.
    """
    monkeypatch.setattr(torchvision.models, "resnet18", lambda weights: ResNet(BasicBlock, [1, 1, 1, 1]))
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
    """The history and the model of each training run."""
    return without_tracking(monkeypatch, tmp_path / "checkpoints")


SETTINGS = DpoImage(
    negatives="random",
    reference=Reference(update="none", alpha=None, every=None),
    max_shift=1,
    flip=False,
    training=training(epochs=2, learning_rate=3e-4, batch_size=8),
)
OPTIONS = LossOptions(**NO_OPTIONS)


def dpo(seed: int = 0, settings: DpoImage = SETTINGS, loss: Any = "sigmoid") -> None:
    """Run the DPO stage with beta 0.5."""
    dpo_image.main(0.5, loss, seed, OPTIONS, {}, settings)


@pytest.mark.slow
def test_dpo_starts_at_ln_2_and_learns(project: Path, ran: list[tuple[History, nn.Module]]) -> None:
    dpo(settings=dataclasses.replace(SETTINGS, training=training(epochs=5, learning_rate=3e-4, batch_size=8)))
    history, _ = ran[0]
    first, last = history.train[0], history.validation[-1]
    assert first["loss"] == pytest.approx(log(2), abs=1e-7)
    zeros = {name: first[name] for name in ("rewards/chosen", "rewards/rejected", "rewards/margin")}
    assert zeros == dict.fromkeys(zeros, 0.0)
    assert first["rewards/accuracy"] == 0.5
    assert history.validation[0]["loss"] == pytest.approx(log(2), abs=1e-7)
    assert history.train[-1]["loss"] < 0.6
    assert last["step"] == 5 * 16 / 8


@pytest.mark.slow
def test_dpo_changes_neither_the_reference_nor_batch_statistics(
    project: Path, ran: list[tuple[History, nn.Module]]
) -> None:
    before = sha256(dpo_image.REFERENCE)
    reference = weights(resnet.load(dpo_image.REFERENCE)[0])
    dpo()
    assert sha256(dpo_image.REFERENCE) == before
    policy, architecture = resnet.load(dpo_image.POLICY)
    assert architecture == SMALL
    trained = weights(policy)
    changed = {name for name, t in trained.items() if not torch.equal(t, reference[name])}
    assert changed
    assert changed <= {name for name, _ in policy.named_parameters()}
    assert all(torch.equal(trained[name], t) for name, t in weights(ran[0][1]).items())


@pytest.mark.slow
def test_dpo_is_a_function_of_its_seed(project: Path, ran: list[tuple[History, nn.Module]]) -> None:
    once = dataclasses.replace(SETTINGS, training=training(batch_size=8))
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        dpo(seed, once)
        dpo_image.POLICY.rename(name)
    assert sha256(Path("a")) == sha256(Path("b")) != sha256(Path("c"))


@pytest.mark.slow
def test_the_control_starts_where_dpo_does(project: Path, ran: list[tuple[History, nn.Module]]) -> None:
    """It has the same rows and shifts in the same order, and its first loss is the reference's cross-entropy."""
    control_image.main(0, SETTINGS)
    dpo()
    control, policy = ran[0][0], ran[1][0]
    assert control.train[0]["loss"] == pytest.approx(-policy.train[0]["logps/chosen"], abs=1e-5)
    assert control.train[-1]["loss"] < control.train[0]["loss"]
    assert resnet.load(control_image.CONTROL)[1] == SMALL


@pytest.mark.slow
@pytest.mark.parametrize("negatives", [slow("random"), "hard", slow("confusion")])
def test_what_is_validated_is_the_validation_split(
    project: Path, ran: list[tuple[History, nn.Module]], negatives: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seed project validated on its training rows. Other validation images change the metrics, never the model."""
    dpo(settings=dataclasses.replace(SETTINGS, negatives=negatives))
    dpo_image.POLICY.rename("before")
    pixels = load_file(dpo_image.IMAGES / "images.safetensors")["images"]
    pixels[load_splits(dpo_image.IMAGES, dpo_image.PAIRS)["val"].index] = 255
    save_file({"images": pixels}, dpo_image.IMAGES / "images.safetensors")
    dpo(settings=dataclasses.replace(SETTINGS, negatives=negatives))
    assert sha256(Path("before/model.safetensors")) == sha256(dpo_image.POLICY / "model.safetensors")
    assert sha256(Path("before/history.csv")) == sha256(dpo_image.POLICY / "history.csv")
    assert sha256(Path("before/validation.csv")) != sha256(dpo_image.POLICY / "validation.csv")


@pytest.mark.slow
def test_the_test_split_does_not_influence_training(project: Path, ran: list[tuple[History, nn.Module]]) -> None:
    """Other test images change nothing that training writes, neither models nor metrics."""
    for name, images in (("a", None), ("b", 255)):
        if images is not None:
            pixels = load_file(dpo_image.IMAGES / "images.safetensors")["images"]
            pixels[load_splits(dpo_image.IMAGES, dpo_image.PAIRS)["test"].index] = images
            save_file({"images": pixels}, dpo_image.IMAGES / "images.safetensors")
        dpo(settings=dataclasses.replace(SETTINGS, negatives="confusion"))
        control_image.main(0, SETTINGS)
        Path(name).mkdir()
        dpo_image.POLICY.rename(f"{name}/dpo")
        control_image.CONTROL.rename(f"{name}/control")
    assert sha256(Path("a")) == sha256(Path("b"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "reference",
    [
        Reference(update="polyak", alpha=0.5, every=None),
        slow(Reference(update="copy", alpha=None, every=None)),
        slow(Reference(update="sync", alpha=1.0, every=2)),
    ],
    ids=lambda reference: reference.update,
)
def test_a_moving_reference_follows_the_policy(
    project: Path, ran: list[tuple[History, nn.Module]], reference: Reference
) -> None:
    """Its artefact does not change, and the policy stays closer to it than to a frozen reference."""
    before = sha256(dpo_image.REFERENCE)
    dpo()
    dpo_image.POLICY.rename("frozen")
    dpo(settings=dataclasses.replace(SETTINGS, reference=reference))
    frozen, moving = ran[0][0], ran[1][0]
    assert sha256(dpo_image.REFERENCE) == before
    assert moving.train[0] == frozen.train[0]
    assert 0 <= abs(moving.validation[-1]["kl"]) < 0.9 * frozen.validation[-1]["kl"]
    assert "drift/reference" not in moving.validation[-1]
    assert frozen.validation[-1]["drift/reference"] == frozen.validation[-1]["drift/buffers"] == 0


STILL = dataclasses.replace(SETTINGS, max_shift=0)
POLYAK = Reference(update="polyak", alpha=0.5, every=None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "augment", "cached"),
    [
        (STILL, IDENTITY, True),
        (STILL, Augmentation(1, False, 0), False),
        (STILL, Augmentation(0, True, 0), False),
        (dataclasses.replace(STILL, reference=POLYAK), IDENTITY, False),
    ],
    ids=["still", "shifts", "mirrors", "moves"],
)
def test_log_probabilities_are_cached_only_if_they_cannot_change(
    settings: DpoImage, augment: Augmentation, cached: bool
) -> None:
    """With another view or a changed reference, the log-probabilities differ, or stay the same if they are cached."""
    torch.manual_seed(0)
    model, split = resnet.build(SMALL).eval(), split_of(6)
    logps = reference_logps(model, split.images, augment, settings)
    rows = [4, 1]
    before = logps(split.images[rows], rows)
    assert not before.requires_grad
    torch.testing.assert_close(before, class_logps(model, split.images[rows]).detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(logps(255 - split.images[rows], rows), before) == cached
    with torch.no_grad():
        model.fc[-1].bias[0] += 1
    assert torch.equal(logps(split.images[rows], rows), before) == cached


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "cached"),
    [(STILL, [16, 4]), (SETTINGS, [4]), (dataclasses.replace(STILL, reference=POLYAK), [])],
    ids=["still", "shifts", "moves"],
)
def test_validation_is_cached_under_augmentation_too(
    project: Path,
    ran: list[tuple[History, nn.Module]],
    settings: DpoImage,
    cached: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The stage caches the reference's scores of both splits, of the four validation images only, or of none."""
    sizes: list[int] = []

    def counted(model: nn.Module, images: Tensor, batch_size: int) -> Tensor:
        sizes.append(len(images))
        return predict(model, images, batch_size)

    monkeypatch.setattr("prefdag.image.dpo_task.predict", counted)
    dpo(settings=settings)
    assert sizes == cached


@pytest.mark.slow
def test_cached_log_probabilities_have_the_precision_of_training() -> None:
    """Otherwise the policy would not start at its reference: float32 and bfloat16 scores differ too much."""
    torch.manual_seed(0)
    model, split = resnet.build(SMALL).eval(), split_of(6)
    half = dataclasses.replace(STILL, training=training(precision="bfloat16"))
    cached, full = (reference_logps(model, split.images, IDENTITY, s)(split.images, range(6)) for s in (half, STILL))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        live = torch.cat([class_logps(model, part) for part in split.images.split(3)])
    assert torch.equal(cached, live)
    assert cached.dtype == torch.float32
    assert not torch.allclose(full, live, atol=1e-5)


def differences(run: tuple[History, nn.Module], other: tuple[History, nn.Module]) -> tuple[float, float]:
    """The largest differences between the losses and between the final weights of two runs."""
    losses = [[row["loss"] for row in history.train + history.validation] for history, _ in (run, other)]
    a, b = (weights(model) for _, model in (run, other))
    return float(np.abs(np.subtract(*losses)).max()), max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.slow
def test_cached_log_probabilities_train_as_live_ones_do(
    project: Path, ran: list[tuple[History, nn.Module]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over four steps, losses agree to 1e-5 and weights to 1e-4, a third of one step's change. With wrong rows, they do not."""
    dpo(settings=STILL)
    with monkeypatch.context() as patched:
        patched.setattr(Augmentation, "changes", True)
        dpo(settings=STILL)
    monkeypatch.setattr("prefdag.image.dpo_task.predict", lambda *args: predict(*args).roll(1, 0))
    monkeypatch.setattr("prefdag.dpo.start.START_TOLERANCE", {"float32": np.inf})
    dpo(settings=STILL)
    cached, live, wrong = ran
    losses, parameters = differences(cached, live)
    assert losses < 1e-5
    assert parameters < 1e-4
    losses, parameters = differences(cached, wrong)
    assert losses > 1e-3
    assert parameters > 1e-3


@pytest.mark.slow
def test_a_reference_that_the_loss_does_not_use_cannot_move(
    project: Path, ran: list[tuple[History, nn.Module]]
) -> None:
    """No parameter is silently ignored."""
    settings = dataclasses.replace(SETTINGS, reference=Reference(update="copy", alpha=None, every=None))
    with pytest.raises(
        ParamsError, match=r"^params.yaml: dpo_image.reference.update: 'copy' updates a reference that the loss"
    ):
        dpo(settings=settings, loss="simpo")
    assert not ran


@pytest.mark.slow
def test_the_kl_of_a_classifier_is_exact_and_can_be_constrained(
    project: Path, ran: list[tuple[History, nn.Module]]
) -> None:
    """In validation it is the same mean over images as in evaluation; as a constraint it passes a gradient."""
    held = {"kl": Constraint(threshold=0.0, multiplier=10.0, dual_rate=0.0)}
    for constraints in ({}, held):
        dpo_image.main(0.5, "sigmoid", 0, OPTIONS, constraints, SETTINGS)
    val = load_splits(dpo_image.IMAGES, dpo_image.PAIRS)["val"]
    logps = [predict(resnet.load(folder)[0], val.images) for folder in (dpo_image.POLICY, dpo_image.REFERENCE)]
    exact = (logps[0].exp() * (logps[0] - logps[1])).sum(1).mean()
    assert ran[1][0].validation[-1]["kl"] == pytest.approx(float(exact), rel=1e-4, abs=1e-7)
    assert ran[1][0].validation[-1]["kl"] < 0.5 * ran[0][0].validation[-1]["kl"]


@pytest.mark.slow
def test_the_evaluation_writes_tables_that_agree_with_its_metrics(
    project: Path, ran: list[tuple[History, nn.Module]]
) -> None:
    """Four images, one per class, whose names look like numbers: the counts of all files agree."""
    write_json(evaluate_image.IMAGES / "classes.json", ["00", "01", "1e3", "a,b"])
    dpo()
    health_image.main(SETTINGS, ImageHealth(kl_budget=100.0, fail_on=[]))
    control_image.main(0, SETTINGS)
    evaluate_image.main(0.5, "sigmoid", OPTIONS)
    metrics, classes, confusion, bins = (
        read_json(evaluate_image.METRICS),
        *(read_csv(p) for p in (evaluate_image.CLASSES, evaluate_image.CONFUSION, evaluate_image.CALIBRATION)),
    )
    assert classes["class"].tolist() == [name for name in ("00", "01", "1e3", "a,b") for _ in evaluate.MODELS]
    for name in evaluate.MODELS:
        right = round(4 * metrics[name]["accuracy"])
        of_model = confusion[confusion["model"] == name]
        assert of_model["count"].sum() == bins[bins["model"] == name]["n"].sum() == 4
        assert of_model[of_model["true"] == of_model["predicted"]]["count"].sum() == right
        assert classes[classes["model"] == name]["right"].sum() == right
    for name, leaf in flatten(metrics).items():
        assert isinstance(leaf, int | float), name  # `dvc metrics` shows nothing else
    before = sha256(evaluate_image.METRICS.parent)
    evaluate_image.main(0.5, "sigmoid", OPTIONS)
    assert sha256(evaluate_image.METRICS.parent) == before


@pytest.mark.slow
def test_a_fatal_finding_stops_the_pipeline_and_keeps_the_policy(
    project: Path, ran: list[tuple[History, nn.Module]]
) -> None:
    """The verdict is not written, so no later stage runs. It is written once the finding is no longer fatal."""
    dpo()
    policy = sha256(dpo_image.POLICY)
    with pytest.raises(NumericError, match=r"params.yaml: health_image.fail_on: kl_out_of_budget: at the end"):
        health_image.main(SETTINGS, ImageHealth(kl_budget=1e-9, fail_on=["kl_out_of_budget"]))
    assert not health_image.HEALTH.exists()
    health_image.main(SETTINGS, ImageHealth(kl_budget=1e-9, fail_on=[]))
    assert "kl_out_of_budget" in {finding["name"] for finding in read_json(health_image.HEALTH)["findings"]}
    assert sha256(dpo_image.POLICY) == policy


@pytest.mark.slow
def test_the_key_of_checkpoints_is_the_stage_and_its_parameters(
    project: Path, ran: list[tuple[History, nn.Module]], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[tuple[str, set[str]]] = []

    def of_stage(stage: str, params: Mapping[str, Any]) -> Checkpoints:
        keys.append((stage, set(params)))
        return Checkpoints(project / "checkpoints")

    monkeypatch.setattr(Checkpoints, "of_stage", of_stage)
    dpo()
    assert keys[0][0] == "dpo_image"
    assert {"beta", "dpo_image.training.epochs", "loss_options.label_smoothing"} <= keys[0][1]
    assert not any("health" in key for key in keys[0][1])


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["kto", slow("aot"), slow("simpo"), {"sigmoid": 0.8, "bco": 0.2, "sft": 1.0}])
def test_other_losses_train_the_classifier_too(project: Path, ran: list[tuple[History, nn.Module]], loss: Any) -> None:
    """In micro-batches of four, so joint losses must be taken over all of a step's rows."""
    dpo(loss=loss)
    history, _ = ran[0]
    assert history.train[-1]["loss"] < history.train[0]["loss"]
    assert {"accuracy", "kl", "rewards/margin"} <= history.validation[-1].keys()


@pytest.mark.slow
def test_splits_hold_their_images_and_labels(project: Path) -> None:
    splits = load_splits(dpo_image.IMAGES, dpo_image.PAIRS)
    assert {name: len(split) for name, split in splits.items()} == {"train": 16, "val": 4, "test": 4}
    assert splits["val"].index == [7, 6, 5, 4]
    assert torch.equal(splits["val"].images, IMAGES[[7, 6, 5, 4]])
    assert splits["val"].y_w.tolist() == [0, 1, 2, 3]
    assert splits["val"].y_l.tolist() == [1, 2, 3, 0]
    assert splits["val"].ids[0] == "image 7"


@pytest.mark.slow
def test_a_split_without_images_is_named(project: Path) -> None:
    """`label_pairs.val_fraction: 0` is within its range."""
    frame = pd.read_parquet(dpo_image.PAIRS / "pairs.parquet")
    frame[frame["split"] != "val"].to_parquet(dpo_image.PAIRS / "pairs.parquet")
    with pytest.raises(DataError, match="val"):
        load_splits(dpo_image.IMAGES, dpo_image.PAIRS)


# Metrics

# Probabilities of two classes for four images whose true class is 0.
REFERENCE = torch.tensor([[0.5, 0.5], [0.6, 0.4], [0.4, 0.6], [0.2, 0.8]]).log()
POLICY = torch.tensor([[0.75, 0.25], [0.8, 0.2], [0.6, 0.4], [0.1, 0.9]]).log()
TEST = ImagePairs([4, 5, 6, 7], random_images(4), torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64))
LOGPS = {"reference": REFERENCE, "policy": POLICY, "control": REFERENCE.flip(1)}


def test_metrics_by_hand() -> None:
    """The reference is right on 2 of 4 (a tie counts for class 0), the policy on 3, the control, its mirror image, on 3."""
    metrics = evaluate.metrics(TEST, LOGPS, preference_of("sigmoid", 2.0))
    assert metrics["n_test"] == 4
    assert [metrics[name]["accuracy"] for name in evaluate.MODELS] == [2 / 4, 3 / 4, 3 / 4]
    cross_entropy = -(log(0.75) + log(0.8) + log(0.6) + log(0.1)) / 4
    assert metrics["policy"]["cross_entropy"] == pytest.approx(cross_entropy, rel=1e-5)
    kls = [
        0.75 * log(0.75 / 0.5) + 0.25 * log(0.25 / 0.5),
        0.8 * log(0.8 / 0.6) + 0.2 * log(0.2 / 0.4),
        0.6 * log(0.6 / 0.4) + 0.4 * log(0.4 / 0.6),
        0.1 * log(0.1 / 0.2) + 0.9 * log(0.9 / 0.8),
    ]
    assert metrics["kl"] == pytest.approx(sum(kls) / 4, rel=1e-5)
    rewards = metrics["rewards"]
    chosen = 2 * (log(0.75 / 0.5) + log(0.8 / 0.6) + log(0.6 / 0.4) + log(0.1 / 0.2)) / 4
    rejected = 2 * (log(0.25 / 0.5) + log(0.2 / 0.4) + log(0.4 / 0.6) + log(0.9 / 0.8)) / 4
    assert rewards["chosen"] == pytest.approx(chosen, rel=1e-5)
    assert rewards["rejected"] == pytest.approx(rejected, rel=1e-5)
    assert rewards["margin"] == pytest.approx(chosen - rejected, rel=1e-5)
    assert rewards["accuracy"] == 3 / 4
    # Of policy and reference, only the policy is right on the third image. Of policy and control, only the policy is right
    # on the second image, and only the control on the last.
    for other, alone in (("reference", 0), ("control", 1)):
        against = metrics[f"policy_against_{other}"]
        assert (against["alone_right"], against["other_alone_right"], against["p"]) == (1, alone, 1.0)
        assert against["difference"] == (1 - alone) / 4
    for part in (*(metrics[name] for name in evaluate.MODELS), rewards):
        assert part["accuracy_low"] < part["accuracy"] < part["accuracy_high"]


def test_a_policy_that_is_its_reference_has_no_kl_and_no_reward() -> None:
    metrics = evaluate.metrics(TEST, {**LOGPS, "policy": REFERENCE}, preference_of("sigmoid", 2.0))
    assert metrics["kl"] == 0
    assert (metrics["rewards"]["margin_low"], metrics["rewards"]["margin_high"]) == (0, 0)
    against = metrics["policy_against_reference"]
    assert (against["alone_right"], against["other_alone_right"], against["difference"], against["p"]) == (0, 0, 0, 1)


def test_predictions_by_hand() -> None:
    frame = evaluate.predictions(TEST, LOGPS)
    assert frame["index"].tolist() == [4, 5, 6, 7]
    assert frame["label"].tolist() == [0] * 4
    assert frame["y_l"].tolist() == [1] * 4
    assert frame["policy"].tolist() == [0, 0, 0, 1]
    assert frame["policy_probability"].tolist() == pytest.approx([0.75, 0.8, 0.6, 0.1])
    assert frame["policy_confidence"].tolist() == pytest.approx([0.75, 0.8, 0.6, 0.9])
    assert frame["control_probability"].tolist() == pytest.approx([0.5, 0.4, 0.6, 0.8])
