"""Gradients of log-probabilities, and how far two of them may be apart."""

from typing import Any

import torch
from torch import Tensor

# bfloat16 has 8 bits of precision: 0.4% a rounding, and log-probabilities of up to 500 nats a response here.
PRECISIONS: dict[Any, tuple[float, float]] = {"float32": (2e-4, 2e-3), "bfloat16": (2.0, 0.2)}


def gradients(logps: Tensor, model: torch.nn.Module) -> dict[str, Tensor]:
    """Of a sum in which each response weighs differently."""
    model.zero_grad()
    (logps * torch.arange(len(logps)).cos()).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Relative to the largest entry of each tensor."""
    assert found.keys() == expected.keys()
    assert found
    for name, value in expected.items():
        off = (found[name] - value).abs().max() / value.abs().max().clamp(min=1e-6)
        assert off <= tolerance, f"{name}: {off}"
