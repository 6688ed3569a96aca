"""A model's outputs for some rows: tensors of shape (rows,) in a structure of mappings and NamedTuples."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor

# Tensors of shape (rows,), by name or in a NamedTuple, possibly nested. Some have a gradient, others are constants.
ModelOutputs = Tensor | None | Mapping[str, "ModelOutputs"] | tuple["ModelOutputs", ...]

Structure = TypeVar("Structure", bound=ModelOutputs)


def tensors(outputs: ModelOutputs) -> list[Tensor]:
    """All tensors in `outputs`, in the order of the names and fields."""
    if outputs is None or isinstance(outputs, Tensor):
        return [] if outputs is None else [outputs]
    parts = outputs.values() if isinstance(outputs, Mapping) else outputs
    return [tensor for part in parts for tensor in tensors(part)]


def map_tensors(function: Callable[..., Tensor], *outputs: Structure) -> Structure:
    """The structure of `outputs`, which all have the same one; each tensor is `function` of theirs in that place."""
    every: Any = outputs
    first = every[0]
    result: Any
    if first is None:
        result = None
    elif isinstance(first, Tensor):
        result = function(*every)
    elif isinstance(first, Mapping):
        result = {name: map_tensors(function, *(each[name] for each in every)) for name in first}
    else:
        result = type(first)(*(map_tensors(function, *parts) for parts in zip(*every, strict=True)))
    return result
