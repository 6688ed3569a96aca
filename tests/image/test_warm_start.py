"""Image classifiers: their initial weights, the stages that provide these, and a reference that does not change."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prefdag.check_params import load_params
from prefdag.config.download_resnet import DownloadResnet
from prefdag.config.resnet_warmup import ResnetWarmup
from prefdag.config.sources import PathSource
from prefdag.image import model as resnet
from prefdag.image.classify import class_logps
from prefdag.lifecycle.errors import DataError, SourceError
from prefdag.runtime.artifacts import read_json, sha256, write_json
from prefdag.train import session
from stages import download_resnet, resnet_warmup

pytestmark = pytest.mark.usefixtures("one_thread")

HEAD = ["fc.1.weight", "fc.1.bias", "fc.3.weight", "fc.3.bias"]


def published(arch: str, seed: int = 1) -> dict[str, Tensor]:
    """Weights with the names of torchvision and timm, the shapes for ImageNet, and non-default batch statistics."""
    torch.manual_seed(seed)
    model = getattr(torchvision.models, arch)(weights=None).eval()
    weights: dict[str, Tensor] = model.state_dict()
    return {name: t + 0.5 if "running" in name else t for name, t in weights.items()}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(published("resnet18"), path)
    return path


def fresh(stem: Any = "imagenet", channels: int = 3, arch: Any = "resnet18") -> nn.Module:
    torch.manual_seed(0)
    return resnet.build(resnet.Architecture(arch, stem, 0.0, channels, 4))


# Warm start


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stem", "channels", "left"),
    [("imagenet", 3, []), ("cifar", 3, ["conv1.weight"]), ("imagenet", 1, ["conv1.weight"])],
)
def test_tensors_that_fit_are_loaded_and_the_others_are_named(
    stem: Any, channels: int, left: list[str], file: Path
) -> None:
    model, before, given = fresh(stem, channels), fresh(stem, channels).state_dict(), load_file(file)
    assert resnet.warm_start(model, file) == left + HEAD
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name] if name in left + HEAD else given[name]), name


@pytest.mark.slow
def test_the_body_computes_what_the_published_one_does(file: Path) -> None:
    """Names and shapes could match although the network differs, for example in its strides."""
    model, original = fresh().eval(), torchvision.models.resnet18(weights=None).eval()
    resnet.warm_start(model, file)
    original.load_state_dict(load_file(file))
    model.fc = original.fc = nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(images), original(images))


@pytest.mark.slow
def test_tensors_that_stay_fresh_are_logged(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "prefdag.image.model"):
        resnet.warm_start(fresh("cifar"), file)
    assert "fresh: conv1.weight, fc.1.weight" in caplog.text


@pytest.mark.slow
def test_half_precision_without_counters_is_accepted(file: Path, tmp_path: Path) -> None:
    weights = {name: t.bfloat16() for name, t in load_file(file).items() if not name.endswith("num_batches_tracked")}
    save_file(weights, tmp_path / "half.safetensors")
    model = fresh()
    assert resnet.warm_start(model, tmp_path / "half.safetensors") == HEAD
    loaded = model.state_dict()["layer1.0.conv1.weight"]
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, weights["layer1.0.conv1.weight"].float())


@pytest.mark.slow
def test_a_head_is_never_loaded(file: Path, tmp_path: Path) -> None:
    """Another of our classifiers may have a head with the same names and shapes, but for other classes."""
    save_file(published("resnet18") | {"fc.3.weight": torch.zeros(4, 512)}, tmp_path / "ours.safetensors")
    model = fresh()
    assert resnet.warm_start(model, tmp_path / "ours.safetensors") == HEAD
    assert model.state_dict()["fc.3.weight"].any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "built"), [("resnet50", "resnet18"), ("resnet34", "resnet18"), ("resnet18", "resnet34")]
)
def test_weights_of_another_architecture_are_refused(given: str, built: str, tmp_path: Path) -> None:
    """resnet34 has all tensors of resnet18, and resnet50 shares norms with both, but nothing is mixed."""
    path = tmp_path / "model.safetensors"
    save_file({name: t.bfloat16() for name, t in published(given).items()}, path)
    model = fresh(arch=built)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(
        DataError, match=f"^params.yaml: resnet_warmup.arch: .* weights of a {given}; set it to {given}$"
    ):
        resnet.warm_start(model, path)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50"])
def test_architectures_are_recognised(arch: str, tmp_path: Path) -> None:
    save_file({name: t.bfloat16() for name, t in published(arch).items()}, tmp_path / "x.safetensors")
    assert resnet.recognise(tmp_path / "x.safetensors") == arch


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda weights: {},
        lambda weights: {"model.embed_tokens.weight": torch.zeros(3)},
        lambda weights: {f"module.{name}": t for name, t in weights.items()},
        lambda weights: {name: t for name, t in weights.items() if name != "layer4.1.bn2.bias"},
        lambda weights: weights | {"layer1.0.se.weight": torch.zeros(3)},
    ],
)
def test_files_that_are_not_a_resnet_are_refused(change: Any, file: Path, tmp_path: Path) -> None:
    save_file(change(load_file(file)), tmp_path / "odd.safetensors")
    with pytest.raises(DataError, match=r"^odd\.safetensors: contains .*; choose other weights$") as caught:
        resnet.recognise(tmp_path / "odd.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_broken_file_is_refused(file: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"^cut\.safetensors: not a whole safetensors file .*; fetch it again$"):
        resnet.recognise(tmp_path / "cut.safetensors")


# download_resnet


def source(path: Path, digest: str | None = None) -> DownloadResnet:
    return DownloadResnet(source=PathSource(kind="path", path=str(path), sha256=digest or sha256(path)))


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    (tmp_path / "workspace").mkdir()
    monkeypatch.chdir(tmp_path / "workspace")
    return tmp_path / "workspace"


def test_without_a_source_only_a_note_is_written(workspace: Path) -> None:
    download_resnet.main(DownloadResnet(source=None))
    assert [path.name for path in download_resnet.BASE.iterdir()] == ["base.json"]
    assert read_json(download_resnet.BASE / "base.json") == {"arch": None}


@pytest.mark.slow
def test_weights_of_any_name_are_fetched(workspace: Path, file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "from/deeper"
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(file.read_bytes())
    (tmp_path / "from/config.json").write_text("{}")
    for given in (file, tmp_path / "from"):
        download_resnet.main(source(given))
        assert sorted(path.name for path in download_resnet.BASE.iterdir()) == ["base.json", "model.safetensors"]
        assert (download_resnet.BASE / "model.safetensors").read_bytes() == file.read_bytes()
        assert read_json(download_resnet.BASE / "base.json") == {"arch": "resnet18"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["config.json"], "no .safetensors files among config.json; name one"),
        (
            ["a.safetensors", "b/c.safetensors"],
            "2 .safetensors files among a.safetensors, b/c.safetensors; name one",
        ),
        (["a.safetensors"], None),
    ],
)
def test_a_source_without_exactly_one_resnet_writes_nothing(
    names: list[str], message: str | None, workspace: Path, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        save_file({"weight": torch.zeros(1)}, tmp_path / "from" / name)
    with pytest.raises(DataError) as caught:
        download_resnet.main(source(tmp_path / "from"))
    line = f"params.yaml: download_resnet.source: {message}" if message else "a.safetensors: contains weight, ..."
    assert str(caught.value).startswith(line)
    assert list(Path("models").iterdir()) == []


def test_bytes_that_differ_from_the_pinned_hash_are_refused(workspace: Path, file: Path) -> None:
    with pytest.raises(SourceError, match=r"^params\.yaml: download_resnet\.source: sha256 is"):
        download_resnet.main(source(file, "0" * 64))
    assert list(Path("models").iterdir()) == []


# resnet_warmup


@pytest.fixture
def trained(workspace: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The arguments that resnet_warmup passes to `train_stage` for 24 colour images of 4 classes, with or without weights."""
    for folder in (resnet_warmup.IMAGES, resnet_warmup.PAIRS, resnet_warmup.BASE):
        folder.mkdir(parents=True)
    images = torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_file({"images": images}, resnet_warmup.IMAGES / "images.safetensors")
    write_json(resnet_warmup.IMAGES / "classes.json", ["a", "b", "c", "d"])
    labels = np.arange(24) % 4
    split = ["train"] * 12 + ["val"] * 8 + ["test"] * 4
    frame = pd.DataFrame({"index": np.arange(24), "split": split, "y_w": labels, "y_l": (labels + 1) % 4})
    frame.to_parquet(resnet_warmup.PAIRS / "pairs.parquet")
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(session, "train_stage", lambda *arguments, **keywords: calls.append(arguments))
    config: ResnetWarmup = load_params(root / "params.yaml").resnet_warmup

    def run(weights: Path | None) -> tuple[Any, ...]:
        write_json(resnet_warmup.BASE / "base.json", {"arch": "resnet18" if weights else None})
        if weights:
            (resnet_warmup.BASE / "model.safetensors").write_bytes(weights.read_bytes())
        resnet_warmup.main(config)
        return calls.pop()

    return run


@pytest.mark.slow
def test_the_warm_up_starts_from_the_downloaded_weights_if_any(trained: Any, file: Path) -> None:
    cold, warm = trained(None)[0].state_dict(), trained(file)[0].state_dict()
    for name, tensor in load_file(file).items():
        if not name.startswith("fc."):
            assert torch.equal(warm[name], tensor)
    assert not torch.equal(cold["layer1.0.conv1.weight"], warm["layer1.0.conv1.weight"])
    assert all(torch.equal(cold[name], warm[name]) for name in HEAD)  # the head depends on the seed only


@pytest.mark.slow
def test_the_warm_up_trains_in_train_mode_and_validates_on_other_images(trained: Any) -> None:
    """The seed project's validation loops read the training loader."""
    model, (train, validation), *_ = trained(None)
    assert all(module.training for module in model.modules())
    assert train.ids == [f"image {i}" for i in range(12)]
    assert validation.ids == [f"image {i}" for i in range(12, 20)]


@pytest.mark.slow
def test_a_missing_download_is_named(trained: Any, root: Path) -> None:
    trained(None)
    (resnet_warmup.BASE / "base.json").unlink()
    with pytest.raises(DataError, match=r"models/resnet_base/base\.json: not found; `dvc repro` makes it"):
        resnet_warmup.main(load_params(root / "params.yaml").resnet_warmup)


# The reference in eval mode


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.named_buffers()}


@pytest.mark.slow
def test_a_loaded_reference_never_changes_but_would_in_train_mode(tmp_path: Path) -> None:
    """The seed project never called eval(), so its reference's batch statistics followed the data of DPO."""
    resnet.save(fresh(), resnet.Architecture("resnet18", "imagenet", 0.5, 3, 4), tmp_path)
    reference = resnet.load(tmp_path)[0].requires_grad_(False)
    before, images = buffers(reference), torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    first = class_logps(reference, images)
    assert torch.equal(class_logps(reference, images), first)  # dropout is off
    torch.testing.assert_close(class_logps(reference, images[:1]), first[:1])  # the rest of the batch does not matter
    assert not first.requires_grad
    after = buffers(reference)
    assert len(before) == 60
    assert all(torch.equal(t, before[name]) for name, t in after.items())
    with torch.no_grad():
        class_logps(reference.train(), images)
    assert all(not torch.equal(t, before[name]) for name, t in buffers(reference).items())
