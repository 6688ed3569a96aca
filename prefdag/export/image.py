"""The classifier as safetensors with what it takes to rebuild it, and as ONNX with the normalisation inside."""

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

from prefdag.export.readback import Deviation, compare, same_tensors
from prefdag.image.data import normalise
from prefdag.image.model import Architecture, Convolution, build
from prefdag.runtime.artifacts import read_json, write_json

BATCHES = (1, 3)  # the graph is compared on batches of other sizes than the one that it was traced with
NORMALISATION = "pixels / 127.5 - 1, from 0..255 to -1..1"  # what `normalise` does, in words


class _FromPixels(nn.Module):
    """uint8 images (n, channels, H, W) in 0..255 to logits (n, classes): nobody has to know the normalisation."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(normalise(images))


def write_image(model: nn.Module, architecture: Architecture, classes: list[str], images: Tensor, folder: Path) -> None:
    """Write model.safetensors, config.json and model.onnx into `folder`, which exists.

    Args:
        images: uint8 (n, channels, H, W), whose size the graph takes; any number of them.
    """
    save_file({name: t.contiguous().cpu() for name, t in model.state_dict().items()}, folder / "model.safetensors")
    _, _, height, width = images.shape
    shape = {"height": height, "width": width}
    names = {"class_names": classes, "normalisation": NORMALISATION}
    write_json(folder / "config.json", asdict(architecture) | shape | names)
    plain = copy.deepcopy(model).cpu()
    convolutions: list[Any] = [module for module in plain.modules() if isinstance(module, Convolution)]
    for module in convolutions:  # ours is faster on a CPU; a graph wants the operator itself
        module.__class__ = nn.Conv2d
    onnx.save(_graph(plain, images[:2].cpu()), folder / "model.onnx")


def _graph(model: nn.Module, images: Tensor) -> ModelProto:
    """The ONNX graph of a classifier, the number of images left open."""
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
    """Take the exporter's notes away: they name the files of this machine from which each node comes."""
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]


@torch.no_grad()
def check_image(folder: Path, model: nn.Module, images: Tensor) -> dict[str, Deviation]:
    """Both forms, read back, against `model`: its tensors, and its logits for uint8 images. Raises `PrefdagError`."""
    expected = model(normalise(images)).float().cpu()
    rebuilt, device = read_image(folder), images.device
    same_tensors(f"{folder.name}/model.safetensors", rebuilt.state_dict(), model.state_dict())
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    pixels = images.cpu().numpy()
    cuts = np.cumsum(BATCHES)
    answers = [session.run(None, {"images": part})[0] for part in np.split(pixels, cuts[cuts < len(pixels)])]
    found = {
        "model.safetensors": rebuilt.to(device)(normalise(images)).float().cpu(),
        "model.onnx": torch.from_numpy(np.concatenate(answers)),
    }
    return {name: compare(f"{folder.name}/{name}", logits, expected) for name, logits in found.items()}


def read_image(folder: Path) -> nn.Module:
    """The classifier that `write_image` wrote, in eval mode."""
    config = read_json(folder / "config.json")
    model = build(Architecture(**{name: config[name] for name in Architecture.__dataclass_fields__}))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()
