"""FlexAttention as a GPU runs it, compiled: values and gradients of the explicit computation in float64 on a CPU."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from prefdag.text.scoring.chunked import chunked_attention
from prefdag.text.scoring.flex import flex_for, flex_packed_attention
from prefdag.text.scoring.packing import Segment

pytestmark = [
    pytest.mark.slow,  # compiling a kernel takes ten seconds
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
HEADS, KV_HEADS = 4, 2
# Two rows that differ in every length, since a kernel is compiled once for all lengths.
ROWS = [((130, (20, 9)), (20, (40, 25)), (3, (5,))), ((300, (200, 117)), (77, (64,)))]
# Relative to the largest entry. bfloat16 has 8 bits, float32 products may use TF32 only if the user allows it.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def segments_of(row: Any) -> tuple[Segment, ...]:
    start, segments = 0, []
    for prompt, responses in row:
        segments.append(Segment(start, prompt, responses))
        start += prompt + sum(responses)
    return tuple(segments)


def values_and_gradients(attention: Any, inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attention(*leaves)
    return [out, *torch.autograd.grad(out, leaves, upstream.to(out))]


def call(attention: Any, options: tuple[Any, ...], *inputs: Any) -> Tensor:
    """`attention` of query, key, value and, if there are any, sinks, which come after the options."""
    out: Tensor = attention(*inputs[:3], *options, *inputs[3:])
    return out


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("width", [64, 96, 128, 256])
@pytest.mark.parametrize(
    ("prefix", "window", "softcap", "sinks"),
    [(0, None, None, False), (5, None, None, False), (0, 64, None, False), (0, 64, 30.0, False), (0, 64, None, True)],
)
def test_compiled_attention_is_exact(
    dtype: torch.dtype, width: int, prefix: int, window: int | None, softcap: float | None, sinks: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    for row in ROWS:
        segments = segments_of(row)
        n = sum(prompt + sum(responses) for prompt, responses in row)
        shapes = [(1, HEADS, n, width), (1, KV_HEADS, prefix + n, width), (1, KV_HEADS, prefix + n, width)]
        inputs = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        if sinks:
            inputs.append(torch.randn(HEADS, generator=generator).to(dtype))
        on_gpu = [x.cuda() for x in inputs]
        flex = flex_for(*on_gpu[:3], window, softcap, on_gpu[3] if sinks else None)
        assert flex is not None, "FlexAttention has no kernel for this"
        upstream = torch.randn(1, n, HEADS, width, generator=generator).to(dtype)
        explicit = functools.partial(call, chunked_attention, (segments, None, 0.0, window, softcap))
        compiled = functools.partial(
            call, functools.partial(flex_packed_attention, flex), (segments, None, window, softcap)
        )
        expected = values_and_gradients(explicit, [x.double() for x in inputs], upstream)
        results = values_and_gradients(compiled, on_gpu, upstream)
        for name, result, value in zip(["out", "q", "k", "v", "sinks"], results, expected, strict=False):
            off = (result.double().cpu() - value).abs().max() / value.abs().max()
            assert off <= TOLERANCE[dtype], f"{name}: {off}"


def test_heads_that_are_too_narrow_for_a_kernel_are_computed_in_chunks() -> None:
    q = torch.zeros(1, 2, 5, 8, device="cuda")
    assert flex_for(q, q, q, None, None, None) is None


def test_kernels_are_tried_where_gradients_are_off() -> None:
    """As when a model is loaded: the trial needs gradients all the same."""
    q = torch.zeros(1, 2, 5, 32, device="cuda")
    with torch.no_grad():
        assert flex_for(q, q, q, None, None, None) is not None
