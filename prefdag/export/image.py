"""The classifier as safetensors with the configuration to rebuild it, and as ONNX that includes the normalisation."""

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import GraphProto, ModelProto
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prefdag.export.readback import LogitDeviation, check_logits, check_tensors
from prefdag.image.data import normalise
from prefdag.image.model import Architecture, Convolution, build
from prefdag.runtime.artifacts import read_json, write_json

BATCHES = (1, 3)  # first batches of the comparison: sizes other than the one that the graph was traced with
NORMALISATION = "pixels / 127.5 - 1, from 0..255 to -1..1"  # what `normalise` does, in words


class _FromPixels(nn.Module):
    """uint8 images (n, channels, H, W) in 0..255 to logits (n, classes), including the normalisation."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(normalise(images))


def write_image(model: nn.Module, architecture: Architecture, classes: list[str], images: Tensor, folder: Path) -> None:
    """Write model.safetensors, config.json and model.onnx to the existing `folder`.

    Args:
        images: uint8 (n, channels, H, W), at least two. They set the image size of the graph; its batch size stays free.
    """
    save_file({name: t.contiguous().cpu() for name, t in model.state_dict().items()}, folder / "model.safetensors")
    _, _, height, width = images.shape
    shape = {"height": height, "width": width}
    names = {"class_names": classes, "normalisation": NORMALISATION}
    write_json(folder / "config.json", asdict(architecture) | shape | names)
    plain = copy.deepcopy(model).cpu()
    convolutions: list[Any] = [module for module in plain.modules() if isinstance(module, Convolution)]
    for module in convolutions:  # ours is for speed on CPUs; the graph needs torch's operator
        module.__class__ = nn.Conv2d
    onnx.save(_graph(plain, images[:2].cpu()), folder / "model.onnx")


def _graph(model: nn.Module, images: Tensor) -> ModelProto:
    """The ONNX graph of a classifier, with a dynamic batch size."""
    program = torch.onnx.export(
        _FromPixels(model).eval(),
        (images,),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    assert program is not None
    graph: ModelProto = program.model_proto
    _strip(graph.graph)
    return graph


def _strip(graph: GraphProto) -> None:
    """Remove the exporter's metadata, which holds paths of source files on this machine."""
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]


@torch.no_grad()
def check_image(folder: Path, model: nn.Module, images: Tensor) -> dict[str, LogitDeviation]:
    """Read both forms back, and compare tensors and logits for uint8 images with `model`. Raises `PrefdagError`."""
    expected = model(normalise(images)).float().cpu()
    rebuilt, device = read_image(folder), images.device
    check_tensors(f"{folder.name}/model.safetensors", rebuilt.state_dict(), model.state_dict())
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    pixels = images.cpu().numpy()
    cuts = np.cumsum(BATCHES)
    batches = [session.run(None, {"images": part})[0] for part in np.split(pixels, cuts[cuts < len(pixels)])]
    logits = {
        "model.safetensors": rebuilt.to(device)(normalise(images)).float().cpu(),
        "model.onnx": torch.from_numpy(np.concatenate(batches)),
    }
    return {name: check_logits(f"{folder.name}/{name}", actual, expected) for name, actual in logits.items()}


def read_image(folder: Path) -> nn.Module:
    """The classifier that `write_image` wrote, in eval mode."""
    config = read_json(folder / "config.json")
    model = build(Architecture(**{name: config[name] for name in Architecture.__dataclass_fields__}))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()
