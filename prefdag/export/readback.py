"""Checks that a model read back from disk equals the pipeline's own."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from prefdag.lifecycle.errors import PrefdagError

# As a share of the largest logit. Float32 has a relative error of 6e-8 (24 bits). Matrix products in another order, or an
# adapter merged into its weight, add to it in every layer: 1e-5 is usual. A missing layer is a hundred times the tolerance.
TOLERANCE = 1e-4
REMEDY = "nothing was exported; check disk and memory, then run it again"


class LogitDeviation(NamedTuple):
    """How far logits are from the pipeline's."""

    largest: float  # difference
    scale: float  # the largest logit
    logits: int  # how many were compared

    def __str__(self) -> str:
        """For a line of output."""
        return f"largest deviation {self.largest:.1e} of {self.logits} logits up to {self.scale:.1f}"


def check_tensors(name: str, actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that all tensors read back are bit-identical. The logits of a few rows do not depend on every element.

    Raises:
        PrefdagError: a tensor differs or is missing.
    """
    for key, tensor in expected.items():
        if key not in actual or not torch.equal(actual[key], tensor.to(actual[key].device)):
            raise PrefdagError(f"{name}: read back, {key} is not what was written; {REMEDY}")


def check_logits(name: str, actual: Tensor, expected: Tensor) -> LogitDeviation:
    """The deviation of logits of the same shape.

    Raises:
        PrefdagError: it is NaN, or more than `TOLERANCE` of the largest logit.
    """
    assert actual.shape == expected.shape, f"{name}: {tuple(actual.shape)}, not {tuple(expected.shape)}"
    deviation = LogitDeviation(
        float((actual.double() - expected.double()).abs().max()), float(expected.abs().max()), expected.numel()
    )
    allowed = TOLERANCE * deviation.scale
    if not deviation.largest <= allowed:
        raise PrefdagError(
            f"{name}: read back, it differs from the pipeline's model: {deviation}, at most {allowed:.1e} allowed; {REMEDY}"
        )
    return deviation
