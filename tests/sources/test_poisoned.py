"""Files that run code when loaded in the usual way are refused everywhere, and their code never runs."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_folders import model_folder

from prefdag.formats.records import read_records
from prefdag.image.model import weights_in
from prefdag.images.reading import read_images
from prefdag.lifecycle.errors import PrefdagError
from prefdag.runtime.artifacts import read_json, write_json
from prefdag.text.convert import convert


class Poison:
    """An object that writes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return Path.touch, (self.canary,)


def weights_bin(folder: Path, poison: Poison) -> Callable[[], Any]:
    source = model_folder(folder / "model")
    (source / "model.safetensors").unlink()
    torch.save({"lm_head.weight": poison}, source / "pytorch_model.bin")
    return lambda: convert(source, folder / "out")


def adapter_bin(folder: Path, poison: Poison) -> Callable[[], Any]:
    """Next to a complete model: transformers would load the adapter with it."""
    source = model_folder(folder / "model")
    write_json(source / "adapter_config.json", {"peft_type": "LORA", "r": 1, "target_modules": ["q_proj"]})
    torch.save({"base_model.model.lora": poison}, source / "adapter_model.bin")
    return lambda: convert(source, folder / "out")


def remote_code(folder: Path, poison: Poison) -> Callable[[], Any]:
    source = model_folder(folder / "model")
    config = read_json(source / "config.json") | {"model_type": "mine", "auto_map": {"AutoConfig": "evil.Evil"}}
    write_json(source / "config.json", config)
    (source / "evil.py").write_text(f"open({str(poison.canary)!r}, 'w')")
    return lambda: convert(source, folder / "out")


def weights_pt(folder: Path, poison: Poison) -> Callable[[], Any]:
    torch.save({"conv1.weight": poison}, folder / "resnet18.pt")
    return lambda: weights_in(folder)


def rows_pkl(folder: Path, poison: Poison) -> Callable[[], Any]:
    (folder / "pairs.pkl").write_bytes(pickle.dumps([poison]))
    return lambda: list(read_records(folder / "pairs.pkl", "pairs.pkl"))


def images_npy(folder: Path, poison: Poison) -> Callable[[], Any]:
    (folder / "cats").mkdir()
    np.save(folder / "cats" / "images.npy", np.array([poison], dtype=object), allow_pickle=True)
    return lambda: read_images(folder, "image-folder")


POISONED = {
    weights_bin: r"^\*\.safetensors: not found",
    weights_pt: r"no \.safetensors files among resnet18\.pt",
    adapter_bin: "adapter",
    rows_pkl: r"^pairs\.pkl: ",
    images_npy: r"images\.npy",
    remote_code: "it needs code of its own",
}


@pytest.mark.parametrize("make", POISONED, ids=lambda make: make.__name__)
def test_a_poisoned_file_is_refused_and_does_not_run(make: Any, tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    (tmp_path / "in").mkdir()
    read = make(tmp_path / "in", Poison(canary))
    with pytest.raises(PrefdagError, match=POISONED[make]):
        read()
    assert not canary.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "resnet18.pt", "adapter_model.bin", "pairs.pkl", "images.npy"])
def test_the_poison_works(name: str, tmp_path: Path) -> None:
    """The test above can fail: each of these files runs its code if loaded in the usual way."""
    poison = Poison(tmp_path / "ran")
    if name.endswith(".npy"):
        np.save(tmp_path / name, np.array([poison], dtype=object), allow_pickle=True)
        np.load(tmp_path / name, allow_pickle=True)
    elif name.endswith(".pkl"):
        (tmp_path / name).write_bytes(pickle.dumps([poison]))
        pickle.loads((tmp_path / name).read_bytes())
    else:
        torch.save({"weight": poison}, tmp_path / name)
        torch.load(tmp_path / name, weights_only=False)
    assert poison.canary.exists()
