"""The image track: shapes, augmentation as a pure function, the DPO stage from its first step, and its metrics."""

import copy
import dataclasses
from collections.abc import Mapping
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
from prefdag.config.health import Health
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


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_a_convolution_is_torchs(kernel: int, stride: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients, in float64; torch itself is asked where more than one pixel comes out, and only there."""
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 5, kernel, stride, kernel // 2, bias=False).double().to(memory_format=torch.channels_last)
    ours = copy.deepcopy(plain)
    ours.__class__ = resnet.Convolution
    images = torch.randn(4, 3, size, size, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    found = []
    for convolution in (plain, ours):
        x = images.clone().requires_grad_()
        maps = convolution(x)
        maps.square().sum().backward()
        found.append((maps, x.grad, convolution.weight.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: None)
    assert (ours(images) is None) == (found[0][0].shape[2:] != (1, 1))


def test_every_convolution_of_a_classifier_is_ours() -> None:
    model = resnet.build(SMALL)
    assert {type(module) for module in model.modules() if isinstance(module, nn.Conv2d)} == {resnet.Convolution}


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
    assert torch.equal(augmented(split, [5, 2], None, augment), split.images[[5, 2]])
    assert torch.equal(augmented(split, [5, 2], 1, augment), augment(split.images[[5, 2]], [5, 2], 1))


def test_classification_by_hand() -> None:
    """All white, m = 1: logits 1, -1; -log p is ln(1 + exp(-2)) = 0.126928 for class 0, 2.126928 for class 1."""
    white = torch.full((2, 1, 4, 4), 255, dtype=torch.uint8)
    split = ImagePairs([3, 8], white, torch.tensor([0, 1]), torch.tensor([1, 0]))
    task = classification_task(split, IDENTITY)
    losses, metrics = objective_of(task)(Brightness(), [0, 1], None)
    assert losses.tolist() == pytest.approx([0.126928, 2.126928], abs=1e-5)
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
    """Noise, and a bright stripe whose place tells the class: image 23 - i is of class i % 4."""
    images = random_images(24, size=16) // 4
    for i in range(24):
        images[23 - i, :, 4 * (i % 4) : 4 * (i % 4) + 4] += 150
    return images


IMAGES = striped_images()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with 24 images in three splits and a reference that has seen them; stages run in it.

    One block where resnet18 has two, since these tests are about what stages do with a classifier.
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
    """What each stage trained."""
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
    """The DPO stage with beta 0.5."""
    dpo_image.main(0.5, loss, seed, OPTIONS, {}, settings)


def test_dpo_starts_at_ln_2_and_learns(project: Path, ran: list[tuple[History, nn.Module]]) -> None:
    dpo(settings=dataclasses.replace(SETTINGS, training=training(epochs=5, learning_rate=3e-4, batch_size=8)))
    history, _ = ran[0]
    first, last = history.train[0], history.validation[-1]
    assert first["loss"] == pytest.approx(float(np.log(2)), abs=1e-7)
    zeros = {name: first[name] for name in ("rewards/chosen", "rewards/rejected", "rewards/margin")}
    assert zeros == dict.fromkeys(zeros, 0.0)
    assert first["rewards/accuracy"] == 0.5
    assert history.validation[0]["loss"] == pytest.approx(float(np.log(2)), abs=1e-7)
    assert history.train[-1]["loss"] < 0.6
    assert last["step"] == 10


def test_dpo_leaves_the_reference_and_all_batch_statistics_alone(
    project: Path, ran: list[tuple[History, nn.Module]]
) -> None:
    before = sha256(dpo_image.REFERENCE)
    reference = weights(resnet.load(dpo_image.REFERENCE)[0])
    dpo()
    assert sha256(dpo_image.REFERENCE) == before
    policy, architecture = resnet.load(dpo_image.POLICY)
    assert architecture == SMALL
    found = weights(policy)
    changed = {name for name, t in found.items() if not torch.equal(t, reference[name])}
    assert changed
    assert changed <= {name for name, _ in policy.named_parameters()}
    assert all(torch.equal(found[name], t) for name, t in weights(ran[0][1]).items())


@pytest.mark.slow
def test_dpo_is_a_function_of_its_seed(project: Path, ran: list[tuple[History, nn.Module]]) -> None:
    once = dataclasses.replace(SETTINGS, training=training(batch_size=8))
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        dpo(seed, once)
        dpo_image.POLICY.rename(name)
    assert sha256(Path("a")) == sha256(Path("b")) != sha256(Path("c"))


def test_the_control_starts_where_dpo_does(project: Path, ran: list[tuple[History, nn.Module]]) -> None:
    """The same rows and shifts in the same order under the cross-entropy of the reference."""
    control_image.main(0, SETTINGS)
    dpo()
    control, policy = ran[0][0], ran[1][0]
    assert control.train[0]["loss"] == pytest.approx(-policy.train[0]["logps/chosen"], abs=1e-5)
    assert control.train[-1]["loss"] < control.train[0]["loss"]
    assert resnet.load(control_image.CONTROL)[1] == SMALL


@pytest.mark.parametrize("negatives", [slow("random"), "hard", slow("confusion")])
def test_what_is_validated_is_the_validation_split(
    project: Path, ran: list[tuple[History, nn.Module]], negatives: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seed work validated on its training rows. Other validation images change what is measured, never the model."""
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
def test_nothing_is_chosen_by_looking_at_the_test_split(project: Path, ran: list[tuple[History, nn.Module]]) -> None:
    """Other test images change nothing that training writes: neither models nor what was measured on the way."""
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
    """Its artefact stays as it is, and the rewards shrink towards those of a policy that is its own reference."""
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
def test_only_what_does_not_change_is_cached(settings: DpoImage, augment: Augmentation, cached: bool) -> None:
    """What is asked for twice: another reference and another view give other log-probabilities, or, cached, the same."""
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
    """The stage caches what the reference says of so many images: of both splits, of four in validation alone, of none."""
    found: list[int] = []

    def counted(model: nn.Module, images: Tensor, batch_size: int) -> Tensor:
        found.append(len(images))
        return predict(model, images, batch_size)

    monkeypatch.setattr("prefdag.image.dpo_task.predict", counted)
    dpo(settings=settings)
    assert found == cached


def test_cached_log_probabilities_have_the_precision_of_training() -> None:
    """Or the policy would not start at its reference: in bfloat16 the two lie further apart than rows in other batches."""
    torch.manual_seed(0)
    model, split = resnet.build(SMALL).eval(), split_of(6)
    half = dataclasses.replace(STILL, training=training(precision="bfloat16"))
    cached, full = (reference_logps(model, split.images, IDENTITY, s)(split.images, range(6)) for s in (half, STILL))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        live = torch.cat([class_logps(model, part) for part in split.images.split(3)])
    assert torch.equal(cached, live)
    assert cached.dtype == torch.float32
    assert not torch.allclose(full, live, atol=1e-5)


def apart(one: tuple[History, nn.Module], other: tuple[History, nn.Module]) -> tuple[float, float]:
    """The largest difference between two runs, of a loss and of a weight at the end."""
    losses = [[row["loss"] for row in history.train + history.validation] for history, _ in (one, other)]
    a, b = (weights(model) for _, model in (one, other))
    return float(np.abs(np.subtract(*losses)).max()), max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.slow
def test_cached_log_probabilities_train_as_live_ones_do(
    project: Path, ran: list[tuple[History, nn.Module]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over four steps, losses to 1e-5 and weights to 1e-4, a third of one step's change; another row's are far from that."""
    dpo(settings=STILL)
    with monkeypatch.context() as patched:
        patched.setattr(Augmentation, "changes", True)
        dpo(settings=STILL)
    monkeypatch.setattr("prefdag.image.dpo_task.predict", lambda *args: predict(*args).roll(1, 0))
    monkeypatch.setattr("prefdag.dpo.start.START_TOLERANCE", {"float32": np.inf})
    dpo(settings=STILL)
    cached, live, wrong = ran
    losses, parameters = apart(cached, live)
    assert losses < 1e-5
    assert parameters < 1e-4
    losses, parameters = apart(cached, wrong)
    assert losses > 1e-3
    assert parameters > 1e-3


def test_a_reference_that_the_loss_does_not_use_cannot_be_asked_to_move(
    project: Path, ran: list[tuple[History, nn.Module]]
) -> None:
    """No parameter is silently ignored."""
    settings = dataclasses.replace(SETTINGS, reference=Reference(update="copy", alpha=None, every=None))
    with pytest.raises(
        ParamsError, match=r"^params.yaml: dpo_image.reference.update: 'copy' updates a reference that the loss"
    ):
        dpo(settings=settings, loss="simpo")
    assert not ran


def test_the_kl_of_a_classifier_is_exact_and_can_be_held_down(
    project: Path, ran: list[tuple[History, nn.Module]]
) -> None:
    """In validation it is the mean over images that evaluation reports, too; as a constraint it passes a gradient."""
    held = {"kl": Constraint(threshold=0.0, multiplier=10.0, dual_rate=0.0)}
    for constraints in ({}, held):
        dpo_image.main(0.5, "sigmoid", 0, OPTIONS, constraints, SETTINGS)
    val = load_splits(dpo_image.IMAGES, dpo_image.PAIRS)["val"]
    logps = [predict(resnet.load(folder)[0], val.images) for folder in (dpo_image.POLICY, dpo_image.REFERENCE)]
    exact = (logps[0].exp() * (logps[0] - logps[1])).sum(1).mean()
    assert ran[1][0].validation[-1]["kl"] == pytest.approx(float(exact), rel=1e-4, abs=1e-7)
    assert ran[1][0].validation[-1]["kl"] < 0.5 * ran[0][0].validation[-1]["kl"]


def test_the_evaluation_writes_tables_that_agree_with_its_metrics(
    project: Path, ran: list[tuple[History, nn.Module]]
) -> None:
    """Four images, one a class, named as numbers are: what is counted in one file is what another says."""
    write_json(evaluate_image.IMAGES / "classes.json", ["00", "01", "1e3", "a,b"])
    dpo()
    health_image.main(SETTINGS, Health(kl_budget=100.0, fail_on=[]))
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


def test_a_fatal_finding_stops_the_pipeline_and_keeps_the_policy(
    project: Path, ran: list[tuple[History, nn.Module]]
) -> None:
    """The verdict is not written, so nothing after it runs; with the finding no longer fatal, it is."""
    dpo()
    policy = sha256(dpo_image.POLICY)
    with pytest.raises(NumericError, match=r"params.yaml: health_image.fail_on: kl_out_of_budget: at the end"):
        health_image.main(SETTINGS, Health(kl_budget=1e-9, fail_on=["kl_out_of_budget"]))
    assert not health_image.HEALTH.exists()
    health_image.main(SETTINGS, Health(kl_budget=1e-9, fail_on=[]))
    assert "kl_out_of_budget" in {finding["name"] for finding in read_json(health_image.HEALTH)["findings"]}
    assert sha256(dpo_image.POLICY) == policy


def test_the_key_of_checkpoints_is_the_stage_and_the_sections_that_it_takes(
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


@pytest.mark.parametrize("loss", ["kto", slow("aot"), slow("simpo"), {"sigmoid": 0.8, "bco": 0.2, "sft": 1.0}])
def test_other_losses_train_the_classifier_too(project: Path, ran: list[tuple[History, nn.Module]], loss: Any) -> None:
    """In micro-batches of four, so that joint losses are taken over the whole step."""
    dpo(loss=loss)
    history, _ = ran[0]
    assert history.train[-1]["loss"] < history.train[0]["loss"]
    assert {"accuracy", "kl", "rewards/margin"} <= history.validation[-1].keys()


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
    found = evaluate.metrics(TEST, LOGPS, preference_of("sigmoid", 2.0))
    assert found["n_test"] == 4
    assert [found[name]["accuracy"] for name in evaluate.MODELS] == [0.5, 0.75, 0.75]
    assert found["policy"]["cross_entropy"] == pytest.approx(0.831059, abs=1e-5)
    assert found["kl"] == pytest.approx(0.085028, abs=1e-5)
    rewards = found["rewards"]
    assert rewards["chosen"] == pytest.approx(0.202732, abs=1e-5)
    assert rewards["rejected"] == pytest.approx(-0.836988, abs=1e-5)
    assert rewards["margin"] == pytest.approx(1.039720, abs=1e-5)
    assert rewards["accuracy"] == 0.75
    # The policy alone is right on the third image, the reference on none; the control alone on the last, not on the second.
    for other, alone in (("reference", 0), ("control", 1)):
        against = found[f"policy_against_{other}"]
        assert (against["alone_right"], against["other_alone_right"], against["p"]) == (1, alone, 1.0)
        assert against["difference"] == (1 - alone) / 4
    for part in (*(found[name] for name in evaluate.MODELS), rewards):
        assert part["accuracy_low"] < part["accuracy"] < part["accuracy_high"]


def test_a_policy_that_is_its_reference_has_no_kl_and_no_reward() -> None:
    found = evaluate.metrics(TEST, {**LOGPS, "policy": REFERENCE}, preference_of("sigmoid", 2.0))
    assert found["kl"] == 0
    assert (found["rewards"]["margin_low"], found["rewards"]["margin_high"]) == (0, 0)
    against = found["policy_against_reference"]
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
