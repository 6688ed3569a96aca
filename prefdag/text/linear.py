"""Products with weights, on CPUs in float32 through oneDNN instead of BLAS.

oneDNN has kernels for what the machine has (AVX-512, say) where the BLAS that torch is built with keeps to AVX2 on some, and
multiplies with a transposed weight without copying it: docs/benchmarks.md. Elsewhere all of this is `F.linear`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of x (..., in) and weight (out, in), which may be a transposed view, without a gradient on CPUs."""
    if ONEDNN and x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu" and not _autocast():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _autocast() -> bool:
    return torch.is_autocast_enabled("cpu")


class _Product(torch.autograd.Function):
    """`product` with its gradients; x is kept for that of a weight that is trained."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        return (
            product(gradient, weight.t()) if ctx.needs_input_grad[0] else None,
            product(rows.t(), x.flatten(0, -2).t()) if ctx.needs_input_grad[1] else None,
            rows.sum(0) if ctx.needs_input_grad[2] else None,
        )


class Linear(nn.Linear):
    """`nn.Linear` by `product`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if _autocast() else _Product.apply(x, self.weight, self.bias)


class TransposedLinear(Conv1D):
    """GPT-2's `Conv1D`, a linear layer whose weight is (in, out), by `product`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if _autocast() else _Product.apply(x, self.weight.t(), self.bias)


def speed_up(model: nn.Module) -> None:
    """Make the linear layers of a model on a CPU ours, in place: the same parameters under the same names."""
    ours: dict[type, type] = {nn.Linear: Linear, Conv1D: TransposedLinear}
    for module in model.modules():
        if type(module) in ours and module.weight.device.type == "cpu":
            module.__class__ = ours[type(module)]
