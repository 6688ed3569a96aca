"""Faster, leaner layers for transformers' models, swapped in place: the same functions of the same parameters.

- Linear layers in float32 on CPUs call oneDNN instead of BLAS. It uses the machine's instructions (AVX-512, for instance),
  where torch's BLAS stays at AVX2 on some machines, and accepts a transposed weight without a copy.
- A LoRA adapter adds its product to the layer's output in place.
- x silu(g) in gated MLPs (arXiv:2002.05202) keeps g and x for the backward pass, but not silu(g).
- RMSNorm (arXiv:1910.07467) and rotary embeddings (arXiv:2104.09864) have explicit gradients, where autograd would go
  through their formulas step by step.
"""

import copy
import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.pytorch_utils import Conv1D

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of x (..., in) and weight (out, in), which may be a transposed view. Not differentiable on CPUs."""
    if ONEDNN and x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu" and not _autocast():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _autocast() -> bool:
    return torch.is_autocast_enabled("cpu")


class _LinearFunction(torch.autograd.Function):
    """`linear` with its gradients. x is kept only if the weight is trained."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        return (
            linear(gradient, weight.t()) if ctx.needs_input_grad[0] else None,
            linear(rows.t(), x.flatten(0, -2).t()) if ctx.needs_input_grad[1] else None,
            rows.sum(0) if ctx.needs_input_grad[2] else None,
        )


class Linear(nn.Linear):
    """`nn.Linear`, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if _autocast() else _LinearFunction.apply(x, self.weight, self.bias)


class TransposedLinear(Conv1D):
    """GPT-2's `Conv1D`, a linear layer whose weight is (in, out), computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if _autocast() else _LinearFunction.apply(x, self.weight.t(), self.bias)


class _LoraLinear(torch.autograd.Function):
    """x W' + s (x A') B' with W frozen: LoRA, arXiv:2106.09685."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        out, low = linear(x, weight, bias), linear(x, a)
        out.flatten(0, -2).addmm_(low.flatten(0, -2), b.t(), alpha=scale)
        ctx.save_for_backward(x, low, weight, a, b)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        x, low, weight, a, b = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        grad_low = linear(rows, b.t()) * ctx.scale
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = linear(rows, weight.t()).addmm_(grad_low, a).view_as(x)
        return grad_x, None, None, grad_low.t() @ x.flatten(0, -2), ctx.scale * (rows.t() @ low.flatten(0, -2)), None


def lora_forward(layer: Any, x: Tensor) -> Tensor:
    """Forward pass of a peft LoRA layer with one adapter, without dropout, around one of our linear layers."""
    base = layer.base_layer
    if layer.disable_adapters or layer.merged or base.weight.requires_grad or _autocast():
        return type(layer).forward(layer, x)
    weight = base.weight.t() if isinstance(base, Conv1D) else base.weight
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return _LoraLinear.apply(x, weight, base.bias, a, b, layer.scaling["default"])


class _GatedSilu(torch.autograd.Function):
    """x silu(g)."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(g, x)
        return F.silu(g).mul_(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        g, x = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient * x, g), F.silu(g).mul_(gradient)


def gated_mlp_forward(layer: Any, x: Tensor) -> Tensor:
    """Forward pass of a gated MLP with SiLU in transformers (Llama, Qwen, Mistral, ...)."""
    return layer.down_proj(_GatedSilu.apply(layer.gate_proj(x), layer.up_proj(x)))


class _RmsNorm(torch.autograd.Function):
    """w x / sqrt(mean(x^2) + eps), computed in float32 or wider."""

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
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (gradient * (wide * scale).to(x.dtype)).flatten(0, -2).sum(0)
        g = _at_least_float32(gradient * weight)
        along = torch.linalg.vecdot(g, wide).unsqueeze(-1) * scale**3 / x.shape[-1]
        return (g * scale).addcmul_(wide, along, value=-1).to(x.dtype), grad_weight, None


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms_norm_forward(layer: Any, x: Tensor) -> Tensor:
    """Forward pass of an RMSNorm in transformers (Llama, Qwen, Mistral, ...)."""
    return _RmsNorm.apply(x, layer.weight, layer.variance_epsilon)


class _Rotary(torch.autograd.Function):
    """x cos + roll(x) s, where roll swaps the halves (a, b) of x to (b, a), and s is sin with its first half negated."""

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
        s = s.roll(half, -1)  # the gradient is g cos + roll(g s), since roll is its own transpose
        grad_q, grad_k = (g.roll(half, -1).mul_(s).addcmul_(g, cos) for g in gradients)
        return grad_q, grad_k, None, None


def fast_rotary(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap transformers' `apply_rotary_pos_emb`: the usual arguments go to `_Rotary`, any others to `original`."""

    @functools.wraps(original)
    def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> Any:
        usual = not args and not kwargs and q.shape[-1] == cos.shape[-1]
        if not usual or not q.dtype == k.dtype == cos.dtype == sin.dtype:
            return original(q, k, cos, sin, *args, **kwargs)
        return _Rotary.apply(q, k, cos.unsqueeze(1), sin.unsqueeze(1))

    return rotated


SILU = (nn.SiLU, SiLUActivation)

# Replacement forward passes, and the attributes by which a layer qualifies.
REPLACEMENTS = (
    (gated_mlp_forward, ("gate_proj", "up_proj", "down_proj", "act_fn")),
    (rms_norm_forward, ("weight", "variance_epsilon")),
)


def speed_up(model: nn.Module) -> None:
    """Replace the layers of a model by ours, in place. Parameters keep their names and values."""
    ours: dict[type, type] = {nn.Linear: Linear, Conv1D: TransposedLinear}
    equivalent: dict[Any, bool] = {}
    for module in model.modules():
        if type(module) in ours and module.weight.device.type == "cpu":
            module.__class__ = ours[type(module)]
        for replacement, attributes in REPLACEMENTS:
            if all(hasattr(module, name) for name in attributes):
                kind = (type(module), _settings(module))
                if kind not in equivalent:  # one layer of each kind is enough
                    equivalent[kind] = _agrees(replacement, module)
                if equivalent[kind]:
                    module.forward = functools.partial(replacement, module)
    for name in {type(module).__module__ for module in model.modules()}:
        speed_up_rotary(sys.modules[name])


def speed_up_adapters(layers: Iterable[Any]) -> None:
    """Replace the forward pass of peft's LoRA layers around our layers, if they have neither dropout nor DoRA."""
    for layer in layers:
        plain = isinstance(layer.base_layer, Linear | TransposedLinear) and not layer.lora_magnitude_vector
        if plain and isinstance(layer.lora_dropout["default"], nn.Identity):
            layer.forward = functools.partial(lora_forward, layer)


ROTARY = "apply_rotary_pos_emb"
_fast_rotaries: set[Callable[..., Any]] = set()  # our functions in any module


@torch.no_grad()
def speed_up_rotary(code: Any) -> None:
    """Replace the rotary function of a model's Python module, which all its attention layers use, if it is the usual one."""
    original = getattr(code, ROTARY, None)
    if original is None or original in _fast_rotaries:
        return
    # Unlike in a model, the two halves of cos and sin differ, so a function that rotates neighbouring pairs does not agree.
    q, k = torch.linspace(-2, 3, 48).view(2, 1, 2, 3, 4)
    cos, sin = torch.linspace(0, 5, 24).cos().view(2, 1, 3, 4)
    ours = fast_rotary(original)
    try:
        same = all(map(torch.allclose, ours(q, k, cos, sin), original(q, k, cos, sin)))
    except (TypeError, RuntimeError):  # other arguments, other shapes
        return
    if same:
        _fast_rotaries.add(ours)
        setattr(code, ROTARY, ours)


def _settings(layer: nn.Module) -> frozenset[tuple[str, Any]]:
    """The numbers and names that a layer was made with. Layers of one class may have different limits, for example."""
    settings = {name: value for name, value in vars(layer).items() if isinstance(value, int | float | str)}
    return frozenset((name, value) for name, value in settings.items() if name != "layer_idx")


def _with_values(layer: nn.Module) -> nn.Module:
    """The layer, or a copy with random weights if its own are placeholders (see `text/sharded.py`)."""
    if all(weight.is_contiguous() for weight in layer.parameters()):
        return layer
    layer = copy.deepcopy(layer)
    for weight in layer.parameters():
        generator = torch.Generator(weight.device).manual_seed(0)
        weight.data = torch.randn(weight.shape, generator=generator, dtype=weight.dtype, device=weight.device)
    return layer


@torch.no_grad()
def _agrees(replacement: Callable[[Any, Tensor], Tensor], layer: Any) -> bool:
    """Whether `replacement` computes the same as `layer` on two examples. Attribute names alone do not tell.

    The second is large: some gated MLPs limit their values (DeepSeek V4). A layer with further arguments is another one
    (the gated norms of Bamba).
    """
    layer = _with_values(layer)
    weight = next(layer.parameters())
    if not weight.is_floating_point() or not isinstance(getattr(layer, "act_fn", SILU[0]()), SILU):
        return False
    if len(inspect.signature(layer.forward).parameters) != 1:
        return False
    x = torch.linspace(-2, 3, weight.shape[-1]).to(weight) * torch.tensor([[1.0], [1e4]]).to(weight)
    try:
        expected = layer(x)
        tolerance = 1e-4 if expected.dtype == torch.float32 else 0.02
        off = (replacement(layer, x) - expected).abs().amax(-1)
        return bool((off <= tolerance * expected.abs().amax(-1)).all())
    except (TypeError, AttributeError, RuntimeError):  # other arguments, other shapes
        return False
