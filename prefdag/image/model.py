"""ResNet classifiers on disk and in memory (arXiv:1512.03385)."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from prefdag.artifacts import read_json, write_json
from prefdag.process import process


@dataclass(frozen=True)
class Architecture:
    """What a saved classifier is made of."""

    arch: Literal["resnet18", "resnet34", "resnet50"]
    stem: Literal["imagenet", "cifar"]
    dropout: float
    channels: int
    classes: int


def build(architecture: Architecture) -> nn.Module:
    """A fresh classifier, (N, channels, H, W) to logits (N, classes), with the head dropout, linear, dropout, linear.

    The cifar stem is the paper's for 32x32 images (section 4.2): one 3x3 convolution, no pooling.
    """
    model = getattr(torchvision.models, architecture.arch)(weights=None)
    cifar = architecture.stem == "cifar"
    model.conv1 = nn.Conv2d(architecture.channels, 64, *((3, 1, 1) if cifar else (7, 2, 3)), bias=False)
    if cifar:
        model.maxpool = nn.Identity()
    width = model.fc.in_features
    model.fc = nn.Sequential(
        nn.Dropout(architecture.dropout),
        nn.Linear(width, width),
        nn.Dropout(architecture.dropout),
        nn.Linear(width, architecture.classes),
    )
    return model.to(process().device, memory_format=torch.channels_last)


def save(model: nn.Module, architecture: Architecture, folder: Path) -> None:
    """Write weights, buffers and architecture into `folder`, which exists."""
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, folder / "model.safetensors")
    write_json(folder / "config.json", asdict(architecture))


def load(folder: Path) -> tuple[nn.Module, Architecture]:
    """The classifier that `save` wrote, in eval mode: batch statistics fixed, dropout off."""
    architecture = Architecture(**read_json(folder / "config.json"))
    model = build(architecture)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval(), architecture
