"""ResNet classifiers (arXiv:1512.03385): build, save, load, and start from pretrained weights."""

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

from prefdag.distributed.process import process
from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import read_json, read_tensors, write_json

Arch = Literal["resnet18", "resnet34", "resnet50"]
Shapes = dict[str, tuple[int, ...]]  # tensor shapes by name

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Architecture:
    """The architecture of a saved classifier."""

    arch: Arch
    stem: Literal["imagenet", "cifar"]
    dropout: float
    channels: int
    classes: int


class Convolution(nn.Conv2d):
    """A convolution of torchvision's ResNets, without bias, padded by kernel // 2. Faster on CPUs if the output is one pixel.

    It is then a matrix product of the pixels with the weights that do not meet only padding, which is much less work: in the
    last layer of a ResNet with the imagenet stem, a 32x32 image is one pixel, and the kernels are 3x3.
    """

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if max(height, width) > self.stride[0] or x.device.type != "cpu":
            return super().forward(x)
        kernel = self.kernel_size[0]
        edge = kernel // 2
        # Channels last, as in memory.
        pixels = x.permute(0, 2, 3, 1)[:, : kernel - edge, : kernel - edge]
        weights = self.weight.permute(0, 2, 3, 1)[:, edge : edge + height, edge : edge + width]
        return F.linear(pixels.flatten(1), weights.flatten(1))[:, :, None, None]


def build(architecture: Architecture) -> nn.Module:
    """A new classifier, (N, channels, H, W) to logits (N, classes). Its head is dropout, linear, dropout, linear.

    The cifar stem is that of the paper for 32x32 images (section 4.2): one 3x3 convolution, no pooling.
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
    """Write weights, buffers and architecture into the existing `folder`."""
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, folder / "model.safetensors")
    write_json(folder / "config.json", asdict(architecture))


def load(folder: Path) -> tuple[nn.Module, Architecture]:
    """Load a classifier that `save` wrote, in eval mode: fixed batch statistics, no dropout.

    Raises:
        DataError: its files are not those of a classifier, or a tensor is missing, additional, of another type or not finite.
    """
    path = folder / "model.safetensors"
    stored = read_tensors(path, "torch")
    try:
        architecture = Architecture(**read_json(folder / "config.json"))
        model = build(architecture)
        # It would cast other dtypes without a word.
        expected = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        if wrong := sorted(name for name, tensor in stored.items() if tensor.dtype != expected.get(name)):
            raise DataError(f"{path}: {wrong[0]}: not a tensor of the model in config.json; `dvc repro` makes it again")
        model.load_state_dict(stored)
    except (TypeError, AttributeError, RuntimeError, ValueError) as error:  # of a config or of tensors that do not fit
        raise DataError(f"{folder}: not a classifier that prefdag wrote ({' '.join(str(error).split())})") from None
    if wrong := sorted(name for name, tensor in stored.items() if not tensor.isfinite().all()):
        raise DataError(f"{path}: {wrong[0]}: not finite; `dvc repro` makes it again")
    return model.eval(), architecture


def weights_in(folder: Path) -> Path:
    """The one safetensors file below `folder`. Raises `DataError` if there is none, or more than one."""
    files = sorted(folder.rglob("*.safetensors"))
    if len(files) != 1:
        there = ", ".join(path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
        raise DataError(
            f"params.yaml: download_resnet.source: {len(files) or 'no'} .safetensors files among {there or 'no files'}; "
            "name one"
        )
    return files[0]


def recognise(file: Path) -> Arch:
    """The architecture of the weights in `file`, recognised by the names (torchvision's and timm's) and shapes of its blocks.

    Raises:
        DataError: no architecture matches, or it is not a safetensors file.
    """
    blocks = _blocks(_shapes(file))
    for arch in get_args(Arch):
        with torch.device("meta"):
            weights = getattr(torchvision.models, arch)(weights=None).state_dict()
        if blocks == _blocks({name: tensor.shape for name, tensor in weights.items()}):
            return arch
    first = min(_shapes(file), default="nothing")
    raise DataError(
        f"{file.name}: contains {first}, ..., not the blocks of {', '.join(get_args(Arch))} under torchvision's names, "
        "layer1.0.conv1.weight to layer4; choose other weights"
    )


def warm_start(model: nn.Module, file: Path) -> list[str]:
    """Load the weights in `file` into `model`, in place. Returns the names of the tensors that were not loaded.

    All blocks are loaded, and the stem if it has the same shape. The head is not: its classes differ. The weights may have
    been trained on another pixel scale; batch normalisation and the training that follows correct for that.

    Raises:
        DataError: the blocks are of another architecture.
    """
    own = model.state_dict()
    if _blocks(_shapes(file)) != _blocks({name: tensor.shape for name, tensor in own.items()}):
        arch = recognise(file)
        raise DataError(f"params.yaml: resnet_warmup.arch: {file} contains the weights of a {arch}; set it to {arch}")
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
    """The shapes of all tensors in a safetensors file, without reading their values."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DataError(f"{file.name}: not a whole safetensors file ({error}); fetch it again") from None


def _blocks(shapes: Mapping[str, Sequence[int]]) -> Shapes:
    """The tensors of layer1 to layer4: the network without its stem and head."""
    return {name: tuple(shape) for name, shape in shapes.items() if name.startswith("layer") and not _is_counter(name)}


def _is_counter(name: str) -> bool:
    """Batch normalisation's count of batches: older files lack it, and our code does not use it."""
    return name.endswith("num_batches_tracked")
