"""The linear reward model on a classifier's features: its features, its minimum, and labels that say nothing."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from prefdag.image import model as resnet
from prefdag.image import reward_model
from prefdag.image.data import ImagePairs, normalise
from prefdag.stats.reward_model import figures

SMALL = resnet.Architecture(arch="resnet18", stem="cifar", dropout=0.1, channels=1, classes=3)


def pairs_of(y_w: Tensor, y_l: Tensor) -> ImagePairs:
    return ImagePairs(list(range(len(y_w))), torch.zeros(len(y_w), 1, 2, 2, dtype=torch.uint8), y_w, y_l)


def drawn(n: int, seed: int, *, shuffled: bool = False) -> tuple[Tensor, ImagePairs]:
    """Features around a centre for each class, and pairs of the class with another one."""
    generator = torch.Generator().manual_seed(seed)
    y_w = torch.randint(0, 3, (n,), generator=generator)
    y_l = (y_w + torch.randint(1, 3, (n,), generator=generator)) % 3
    x = torch.eye(3, dtype=torch.float64)[y_w] + 0.3 * torch.randn(n, 3, generator=generator, dtype=torch.float64)
    if shuffled:
        swap = torch.rand(n, generator=generator) < 0.5
        y_w, y_l = torch.where(swap, y_l, y_w), torch.where(swap, y_w, y_l)
    return x, pairs_of(y_w, y_l)


@pytest.mark.slow
def test_features_are_what_the_last_layer_gets() -> None:
    torch.manual_seed(0)
    classifier = resnet.build(SMALL).eval()
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        logits = classifier(normalise(images))
    last = classifier.fc[-1]  # type: ignore[index]
    x = reward_model.features(classifier, images)
    assert x.shape == (3, 512)
    torch.testing.assert_close(x @ last.weight.double().T + last.bias.double(), logits.double(), rtol=1e-4, atol=1e-5)


def test_the_loss_and_its_gradient_by_hand() -> None:
    """One image with features (2, 1): at zero weights the loss is ln 2, and its gradient is -1/2 x for y_w, 1/2 x for y_l."""
    model = reward_model.LinearReward(torch.zeros(3, 2).double(), torch.zeros(3).double())
    for tensor in model:
        tensor.requires_grad_(True)
    x = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    loss = reward_model.objective(model, x, pairs_of(torch.tensor([0]), torch.tensor([2])), l2=0.1)
    loss.backward()
    assert loss.item() == pytest.approx(0.693147, abs=1e-6)
    assert model.weight.grad is not None
    assert model.bias.grad is not None
    assert model.weight.grad.tolist() == [[-1.0, -0.5], [0.0, 0.0], [1.0, 0.5]]
    assert model.bias.grad.tolist() == [-0.5, 0.0, 0.5]


def test_the_fit_is_the_minimum_and_the_same_every_time() -> None:
    x, pairs = drawn(200, 0)
    first, again = (reward_model.fit(x, pairs, 3, 0.01) for _ in range(2))
    assert torch.equal(first.weight, again.weight)
    leaves = reward_model.LinearReward(*(tensor.clone().requires_grad_(True) for tensor in first))
    reward_model.objective(leaves, x, pairs, 0.01).backward()
    assert max(float(tensor.grad.abs().max()) for tensor in leaves if tensor.grad is not None) < 1e-6


def test_it_ranks_unseen_pairs_and_not_those_of_shuffled_labels() -> None:
    for shuffled in (False, True):
        model = reward_model.fit(*drawn(300, 0, shuffled=shuffled), 3, 0.01)
        x, test = drawn(300, 1, shuffled=shuffled)
        chosen = model(x, test.y_w)
        found = figures(chosen, model(x, test.y_l), torch.ones_like(chosen))
        assert "length" not in found
        if shuffled:
            assert found["accuracy_low"] < 0.5 < found["accuracy_high"]
        else:
            assert found["accuracy_low"] > 0.9


@pytest.mark.slow
def test_the_stage_publishes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas as pd
    from safetensors.torch import save_file

    from prefdag.config.reward_model_image import RewardModelImage
    from prefdag.runtime.artifacts import read_json, write_json
    from stages import reward_model_image as stage

    monkeypatch.chdir(tmp_path)
    labels = torch.arange(60) % 3
    images = (labels * 100)[:, None, None, None].expand(60, 1, 8, 8).to(torch.uint8).contiguous()
    stage.IMAGES.mkdir(parents=True)
    save_file({"images": images}, stage.IMAGES / "images.safetensors")
    write_json(stage.IMAGES / "classes.json", ["a", "b", "c"])
    stage.PAIRS.mkdir(parents=True)
    splits = ["train"] * 30 + ["val"] * 3 + ["test"] * 27
    rows = {"split": splits, "index": range(60), "y_w": labels, "y_l": (labels + 1) % 3}
    pd.DataFrame(rows).to_parquet(stage.PAIRS / "pairs.parquet")
    stage.REFERENCE.mkdir(parents=True)
    torch.manual_seed(0)
    resnet.save(resnet.build(SMALL), SMALL, stage.REFERENCE)
    stage.main(RewardModelImage(train=True, l2=1e-3))
    found = read_json(stage.FIGURES)
    assert (found["n"], found["accuracy"]) == (27, 1.0)
    before = stage.FIGURES.read_bytes()
    stage.main(RewardModelImage(train=True, l2=1e-3))
    assert stage.FIGURES.read_bytes() == before
