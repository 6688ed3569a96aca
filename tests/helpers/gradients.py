"""Gradients of log-probabilities, and the tolerances for comparing them."""

from typing import Any

import torch
from torch import Tensor

# (absolute, relative) tolerances. bfloat16 has 8 bits of precision: 0.4% per rounding, for up to 500 nats per response.
PRECISIONS: dict[Any, tuple[float, float]] = {"float32": (2e-4, 2e-3), "bfloat16": (2.0, 0.2)}


def gradients(logps: Tensor, model: torch.nn.Module) -> dict[str, Tensor]:
    """The gradients of a sum in which each response has a different weight."""
    model.zero_grad()
    (logps * torch.arange(len(logps)).cos().to(logps.device)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Asserts that errors relative to the largest entry of each tensor are within `tolerance`."""
    assert actual.keys() == expected.keys()
    assert actual
    for name, value in expected.items():
        error = (actual[name] - value).abs().max() / value.abs().max().clamp(min=1e-6)
        assert error <= tolerance, f"{name}: {error}"
