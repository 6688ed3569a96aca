"""Whether a model that was read back says what the pipeline's own model says."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from prefdag.runtime.errors import PrefdagError

# Of the largest logit. Float32 has 24 bits, a relative error of 6e-8; a product of matrices in another order, or an adapter
# merged into its weight, costs some of them in every layer: 1e-5 is usual. A layer left out costs a hundred times that.
TOLERANCE = 1e-4
REMEDY = "nothing was exported; check disk and memory, then run it again"


class Deviation(NamedTuple):
    """How far logits lie from those of the pipeline: the largest difference, and the largest logit beside it."""

    largest: float
    scale: float
    logits: int

    def __str__(self) -> str:
        """For a line of output."""
        return f"largest deviation {self.largest:.1e} of {self.logits} logits up to {self.scale:.1f}"


def same_tensors(name: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """That tensors read back are those that were written, bit by bit: logits of a few rows do not touch every element.

    Raises:
        PrefdagError: one is not, or is not there.
    """
    for key, tensor in expected.items():
        if key not in found or not torch.equal(found[key], tensor.to(found[key].device)):
            raise PrefdagError(f"{name}: read back, {key} is not what was written; {REMEDY}")


def compare(name: str, found: Tensor, expected: Tensor) -> Deviation:
    """The deviation of logits of the same shape.

    Raises:
        PrefdagError: it is more than `TOLERANCE` of the largest logit, or not a number.
    """
    assert found.shape == expected.shape, f"{name}: {tuple(found.shape)}, not {tuple(expected.shape)}"
    said = Deviation(
        float((found.double() - expected.double()).abs().max()), float(expected.abs().max()), expected.numel()
    )
    if not said.largest <= TOLERANCE * said.scale:
        raise PrefdagError(
            f"{name}: read back, it is not the pipeline's model: {said}, allowed are {TOLERANCE * said.scale:.1e}; {REMEDY}"
        )
    return said
