"""ResNet classifiers on disk and in memory (arXiv:1512.03385), and weights from elsewhere to start them from."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
import torchvision
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prefdag.runtime.artifacts import read_json, write_json
from prefdag.runtime.errors import DataError
from prefdag.runtime.process import process

Arch = Literal["resnet18", "resnet34", "resnet50"]
Shapes = dict[str, tuple[int, ...]]  # of tensors, by name

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Architecture:
    """What a saved classifier is made of."""

    arch: Arch
    stem: Literal["imagenet", "cifar"]
    dropout: float
    channels: int
    classes: int


class Convolution(nn.Conv2d):
    """A convolution as torchvision's ResNets have them, without bias, padded by kernel // 2; faster where one pixel comes out.

    There it is a matrix product, of the pixels with those weights that do not meet padding alone. On CPUs that is much less
    work: the last layer of a ResNet with the imagenet stem sees a 32x32 image as one pixel, through kernels of 3x3.
    """

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if max(height, width) > self.stride[0] or x.device.type != "cpu":
            return super().forward(x)
        kernel = self.kernel_size[0]
        edge = kernel // 2
        # Channels last, which is how they lie in memory.
        pixels = x.permute(0, 2, 3, 1)[:, : kernel - edge, : kernel - edge]
        weights = self.weight.permute(0, 2, 3, 1)[:, edge : edge + height, edge : edge + width]
        return F.linear(pixels.flatten(1), weights.flatten(1))[:, :, None, None]


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
    for module in model.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = Convolution
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


def weights_in(folder: Path) -> Path:
    """The one safetensors file below `folder`. Raises `DataError` where there is none, or several."""
    files = sorted(folder.rglob("*.safetensors"))
    if len(files) != 1:
        there = ", ".join(path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
        raise DataError(
            f"params.yaml: download_resnet.source: {len(files) or 'no'} .safetensors files, there is {there or 'nothing'}; "
            "name one"
        )
    return files[0]


def recognise(file: Path) -> Arch:
    """Which architecture has the weights in `file`, by the names (torchvision's and timm's) and shapes of its blocks.

    Raises:
        DataError: none has, or it is not a safetensors file.
    """
    found = _blocks(_shapes(file))
    for arch in get_args(Arch):
        with torch.device("meta"):
            weights = getattr(torchvision.models, arch)(weights=None).state_dict()
        if found == _blocks({name: tensor.shape for name, tensor in weights.items()}):
            return arch
    first = min(_shapes(file), default="nothing")
    raise DataError(
        f"{file.name}: holds {first}, ..., not the blocks of {', '.join(get_args(Arch))} under torchvision's names, "
        "layer1.0.conv1.weight to layer4; choose other weights"
    )


def warm_start(model: nn.Module, file: Path) -> list[str]:
    """Load the weights in `file` into `model`, in place; return the names of the tensors that stay as they were.

    All blocks are loaded, the head never, for its classes are others, and the stem where it has the same shape. That
    the weights may have seen pixels on another scale is left to batch normalisation and the training to come.

    Raises:
        DataError: the blocks are those of another architecture.
    """
    own = model.state_dict()
    if _blocks(_shapes(file)) != _blocks({name: tensor.shape for name, tensor in own.items()}):
        arch = recognise(file)
        raise DataError(f"params.yaml: resnet_warmup.arch: {file} holds the weights of a {arch}; set it to {arch}")
    fitting = {
        name: tensor
        for name, tensor in load_file(file).items()
        if name in own and own[name].shape == tensor.shape and not name.startswith("fc.")
    }
    model.load_state_dict(fitting, strict=False)
    fresh = [name for name in own if name not in fitting and not _is_counter(name)]
    logger.info("weights from %s; fresh: %s", file, ", ".join(fresh))
    return fresh


def _shapes(file: Path) -> Shapes:
    """Of all tensors in a safetensors file, whose values are not read."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DataError(f"{file.name}: not a whole safetensors file ({error}); fetch it again") from None


def _blocks(shapes: Mapping[str, Sequence[int]]) -> Shapes:
    """Those of layer1 to layer4: the network without its stem and its head."""
    return {name: tuple(shape) for name, shape in shapes.items() if name.startswith("layer") and not _is_counter(name)}


def _is_counter(name: str) -> bool:
    """Batches that a batch normalisation has seen: older files do not have it, and nothing of ours reads it."""
    return name.endswith("num_batches_tracked")
