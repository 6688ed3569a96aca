"""Layers of transformers' models made faster and smaller, in place: the same functions of the same parameters.

- Products with weights, on CPUs in float32, go through oneDNN instead of BLAS: it has kernels for what the machine has
  (AVX-512, say) where torch's BLAS keeps to AVX2 on some, and takes a transposed weight without a copy.
- The product with a LoRA adapter beside it adds to what the layer gave, in place.
- x silu(g) in gated layers (arXiv:2002.05202) keeps g and x for the backward pass, and not silu(g) too.
- RMSNorm (arXiv:1910.07467) and rotary positions (arXiv:2104.09864) have their gradients written out, where autograd goes
  through their formulas step by step.
"""

import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import SiLUActivation
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


class _Adapted(torch.autograd.Function):
    """x W' + s (x A') B', W not trained: LoRA, arXiv:2106.09685."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        out, low = product(x, weight, bias), product(x, a)
        out.flatten(0, -2).addmm_(low.flatten(0, -2), b.t(), alpha=scale)
        ctx.save_for_backward(x, low, weight, a, b)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        x, low, weight, a, b = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        of_low = product(rows, b.t()) * ctx.scale
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = product(rows, weight.t()).addmm_(of_low, a).view_as(x)
        return of_x, None, None, of_low.t() @ x.flatten(0, -2), ctx.scale * (rows.t() @ low.flatten(0, -2)), None


def adapted(layer: Any, x: Tensor) -> Tensor:
    """What a layer of peft's computes that has one adapter, without dropout, beside one of our linear layers."""
    base = layer.base_layer
    if layer.disable_adapters or layer.merged or base.weight.requires_grad or _autocast():
        return type(layer).forward(layer, x)
    weight = base.weight.t() if isinstance(base, Conv1D) else base.weight
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return _Adapted.apply(x, weight, base.bias, a, b, layer.scaling["default"])


class _SiluTimes(torch.autograd.Function):
    """x silu(g)."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(g, x)
        return F.silu(g).mul_(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        g, x = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient * x, g), F.silu(g).mul_(gradient)


def gated(layer: Any, x: Tensor) -> Tensor:
    """What a feed-forward layer of transformers computes whose gate goes through SiLU (Llama, Qwen, Mistral, ...)."""
    return layer.down_proj(_SiluTimes.apply(layer.gate_proj(x), layer.up_proj(x)))


class _RmsNorm(torch.autograd.Function):
    """w x / sqrt(mean(x^2) + eps), computed in float32 at least."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = _at_least_float32(x)
        scale = (torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square() / x.shape[-1] + epsilon).rsqrt()
        ctx.save_for_backward(x, scale, weight)
        return (wide * scale).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, scale, weight = ctx.saved_tensors
        wide = _at_least_float32(x)
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (gradient * (wide * scale).to(x.dtype)).flatten(0, -2).sum(0)
        g = _at_least_float32(gradient * weight)
        along = torch.linalg.vecdot(g, wide).unsqueeze(-1) * scale**3 / x.shape[-1]
        return (g * scale).addcmul_(wide, along, value=-1).to(x.dtype), of_weight, None


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def normalised(layer: Any, x: Tensor) -> Tensor:
    """What an RMSNorm of transformers computes (Llama, Qwen, Mistral, ...)."""
    return _RmsNorm.apply(x, layer.weight, layer.variance_epsilon)


class _Rotated(torch.autograd.Function):
    """x cos + roll(x) s: roll exchanges the halves (a, b) of x to (b, a), s is sin with its first half negated."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        half = sin.shape[-1] // 2
        s = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        ctx.save_for_backward(cos, s)
        return tuple(x.roll(half, -1).mul_(s).addcmul_(x, cos) for x in (q, k))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        cos, s = ctx.saved_tensors
        half = s.shape[-1] // 2
        s = s.roll(half, -1)  # roll(g s), roll being its own transpose
        of_q, of_k = (g.roll(half, -1).mul_(s).addcmul_(g, cos) for g in gradients)
        return of_q, of_k, None, None


def rotation(original: Callable[..., Any]) -> Callable[..., Any]:
    """A transformers' `apply_rotary_pos_emb`, made ours where it is asked for what ours does."""

    @functools.wraps(original)
    def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> Any:
        usual = not args and not kwargs and q.shape[-1] == cos.shape[-1]
        if not usual or not q.dtype == k.dtype == cos.dtype == sin.dtype:
            return original(q, k, cos, sin, *args, **kwargs)
        return _Rotated.apply(q, k, cos.unsqueeze(1), sin.unsqueeze(1))

    return rotated


SILU = (nn.SiLU, SiLUActivation)

# What takes the place of a layer's own forward, and the attributes that such a layer has.
REPLACEMENTS = (
    (gated, ("gate_proj", "up_proj", "down_proj", "act_fn")),
    (normalised, ("weight", "variance_epsilon")),
)


def speed_up(model: nn.Module) -> None:
    """Make the layers of a model ours, in place: the same parameters under the same names."""
    ours: dict[type, type] = {nn.Linear: Linear, Conv1D: TransposedLinear}
    same: dict[type, bool] = {}
    for module in model.modules():
        if type(module) in ours and module.weight.device.type == "cpu":
            module.__class__ = ours[type(module)]
        for replacement, attributes in REPLACEMENTS:
            if all(hasattr(module, name) for name in attributes):
                if type(module) not in same:  # of a kind, one speaks for all
                    same[type(module)] = _agree(replacement, module)
                if same[type(module)]:
                    module.forward = functools.partial(replacement, module)
    for name in {type(module).__module__ for module in model.modules()}:
        speed_up_rotation(sys.modules[name])


def speed_up_adapters(layers: Iterable[Any]) -> None:
    """The same for peft's layers around ours, where an adapter is all that there is beside the layer."""
    for layer in layers:
        plain = isinstance(layer.base_layer, Linear | TransposedLinear) and not layer.lora_magnitude_vector
        if plain and isinstance(layer.lora_dropout["default"], nn.Identity):
            layer.forward = functools.partial(adapted, layer)


ROTATE = "apply_rotary_pos_emb"
_rotations: set[Callable[..., Any]] = set()  # of ours, in whichever module


@torch.no_grad()
def speed_up_rotation(code: Any) -> None:
    """Exchange the function by which all attention layers of a model's Python module rotate, if it is the usual one."""
    original = getattr(code, ROTATE, None)
    if original is None or original in _rotations:
        return
    # Unlike a model's, cos and sin have halves that differ: what rotates pairs of neighbours would not agree.
    q, k = torch.linspace(-2, 3, 48).view(2, 1, 2, 3, 4)
    cos, sin = torch.linspace(0, 5, 24).cos().view(2, 1, 3, 4)
    ours = rotation(original)
    try:
        same = all(map(torch.allclose, ours(q, k, cos, sin), original(q, k, cos, sin)))
    except (TypeError, RuntimeError):  # other arguments, other shapes
        return
    if same:
        _rotations.add(ours)
        setattr(code, ROTATE, ours)


@torch.no_grad()
def _agree(replacement: Callable[[Any, Tensor], Tensor], layer: Any) -> bool:
    """Whether it computes what `layer` does, on an example: names alone do not say."""
    weight = next(layer.parameters())
    if not weight.is_floating_point() or not isinstance(getattr(layer, "act_fn", SILU[0]()), SILU):
        return False
    x = torch.linspace(-2, 3, weight.shape[-1]).to(weight)[None]
    try:
        expected = layer(x)
        tolerance = 1e-4 if expected.dtype == torch.float32 else 0.02
        return bool((replacement(layer, x) - expected).abs().max() <= tolerance * expected.abs().max())
    except (TypeError, AttributeError, RuntimeError):  # other arguments, other shapes
        return False
