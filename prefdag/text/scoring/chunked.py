"""Packed attention by torch's kernels: the queries in chunks, each with the keys up to its last token."""

import functools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from prefdag.text.scoring.packing import Segment

CHUNK_TOKENS = (
    128  # tokens per call on a CPU: small enough to skip most later keys, large enough to keep the kernel busy
)


class Chunk(NamedTuple):
    """Consecutive tokens of one prompt or one response whose queries go into one kernel call."""

    queries: slice  # into the row's queries, of which each token has `per_token`
    keys: tuple[slice, ...]  # into the keys, which start with the P of the prefix
    mask: Tensor  # (queries, keys): added to the scores, 0 or -inf


def chunked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: tuple["Segment", ...],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """`packed_attention`, chunk by chunk: (1, T, heads, d).

    Query heads that share a key head become additional queries of that head, next to each other for each token.

    Args:
        softcap: scores s become c tanh(s / c) before the mask (Gemma 2, arXiv:2408.00118).
        sinks: (heads,). Each head's softmax has one more score, of a key without a value (gpt-oss, arXiv:2508.10925).
    """
    heads, kv_heads = query.shape[1], key.shape[1]
    per_token = heads // kv_heads
    prefix = key.shape[2] - query.shape[2]
    chunks = _chunks(segments, prefix, sliding_window, per_token, query.dtype, query.device)
    queries = query.unflatten(1, (kv_heads, per_token)).transpose(2, 3).flatten(2, 3)
    sinks = None if sinks is None else sinks.view(kv_heads, per_token)
    plain = query.device.type == "cpu" and not (dropout or torch.is_autocast_enabled("cpu"))
    if plain and softcap is None and query.shape[-1] == value.shape[-1]:
        out = _ChunkedAttention.apply(queries, key, value, sinks, chunks, scaling)
    else:
        parts = []
        for chunk in chunks:
            q, (k, v) = queries[:, :, chunk.queries], _keys_and_values(key, value, chunk)
            if softcap is None and sinks is None:
                part = F.scaled_dot_product_attention(q, k, v, attn_mask=chunk.mask, scale=scaling, dropout_p=dropout)
            else:
                part = _explicit_attention(q, k, v, chunk.mask, scaling, dropout, softcap, sinks)
            parts.append(part)
        out = torch.cat(parts, dim=2)
    return out.unflatten(2, (-1, per_token)).permute(0, 2, 1, 3, 4).flatten(2, 3)


def _explicit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention by its formula, for what torch's kernels do not compute. The softmax is in float32 or wider."""
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores + mask
    if sinks is not None:
        scores = torch.cat([scores, _sinks_of(sinks, scores.shape[2])[..., None].to(scores.dtype)], dim=-1)
    weights = scores.softmax(-1)[..., : k.shape[2]].to(v.dtype)
    return F.dropout(weights, dropout) @ v


def _sinks_of(sinks: Tensor, queries: int) -> Tensor:
    """The sink of each query of a chunk, (1, kv_heads, queries), from those of the heads, (kv_heads, per_token)."""
    return sinks.repeat(1, queries // sinks.shape[1])[None]


class _ChunkedAttention(torch.autograd.Function):
    """Calls the CPU kernel behind `scaled_dot_product_attention` for each chunk, and adds all gradients into one tensor.

    Autograd would allocate a tensor of the length of the row for every slice of keys and values, and sum them.

    The kernel knows no sinks. With l = log sum exp(s) of a query and its sink z, l' = log(exp(l) + exp(z)): the output
    shrinks by exp(l - l'). Given l' and that output, the kernel's backward pass is that of the softmax with the sink.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        chunks: list[Chunk],
        scaling: float | None,
    ) -> Tensor:
        outs, log_sums = [], []
        for chunk in chunks:
            part, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                queries[:, :, chunk.queries], *_keys_and_values(key, value, chunk), attn_mask=chunk.mask, scale=scaling
            )
            if sinks is not None:
                with_sink = torch.logaddexp(log_sum, _sinks_of(sinks, log_sum.shape[2]).to(log_sum.dtype))
                part = (part * (log_sum - with_sink).exp()[..., None]).to(part.dtype)
                log_sum = torch.empty_like(log_sum).copy_(with_sink)  # in the strides that the kernel expects
            outs.append(part)
            log_sums.append(log_sum)
        out = torch.cat(outs, dim=2)
        ctx.save_for_backward(queries, key, value, sinks, out, *log_sums)
        ctx.chunks, ctx.scaling = chunks, scaling
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, key, value, sinks, out, *log_sums = ctx.saved_tensors
        grad_queries, grad_key, grad_value = [], torch.zeros_like(key), torch.zeros_like(value)
        gradient = gradient.contiguous()
        for chunk, log_sum in zip(ctx.chunks, log_sums, strict=True):
            own = chunk.queries
            grad_query, *grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                gradient[:, :, own],
                queries[:, :, own],
                *_keys_and_values(key, value, chunk),
                out[:, :, own],
                log_sum,
                0.0,
                False,
                attn_mask=chunk.mask,
                scale=ctx.scaling,
            )
            grad_queries.append(grad_query)
            lengths = [part.stop - part.start for part in chunk.keys]
            for total, grad in zip((grad_key, grad_value), grads, strict=True):
                for part, values in zip(chunk.keys, grad.split(lengths, dim=2), strict=True):
                    total[:, :, part] += values
        grad_sinks = None
        if ctx.needs_input_grad[3]:  # the sink's weight, times how much larger its value, 0, is than the output
            log_sum = torch.cat(log_sums, dim=2)
            weight = (_sinks_of(sinks, log_sum.shape[2]) - log_sum).exp()
            each = -weight * (gradient.to(weight.dtype) * out).sum(-1)
            grad_sinks = each.unflatten(2, (-1, sinks.shape[1])).sum((0, 2)).to(sinks.dtype)
        return torch.cat(grad_queries, dim=2), grad_key, grad_value, grad_sinks, None, None


def _keys_and_values(key: Tensor, value: Tensor, chunk: Chunk) -> list[Tensor]:
    """The keys that a chunk attends to, and their values: (1, kv_heads, keys, d)."""
    parts = ([t[:, :, part] for part in chunk.keys] for t in (key, value))
    return [part[0] if len(part) == 1 else torch.cat(part, dim=2) for part in parts]


@functools.lru_cache(maxsize=2)  # the same for every layer
def _chunks(
    segments: tuple["Segment", ...],
    prefix: int,
    window: int | None,
    per_token: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[Chunk]:
    """Split a row into chunks."""
    max_tokens = CHUNK_TOKENS if device.type == "cpu" else 2**30
    chunks: list[Chunk] = []
    for start, prompt, responses in segments:
        begin = start  # of the prompt or response that is split
        for length, first in ((prompt, 0), *((length, prompt) for length in responses)):
            for part in torch.arange(length).tensor_split(math.ceil(length / max_tokens)):
                stop = begin + int(part[-1]) + 1
                # Runs of keys, (start, stop, position of the first): the prefix, the prompt, the chunk's own part.
                runs = [(0, prefix, -prefix)]
                runs += [(prefix + start, prefix + start + prompt, 0)] if begin > start else []
                runs += [(prefix + begin, prefix + stop, first)]
                positions = torch.cat([torch.arange(b - a) + position for a, b, position in runs])
                distance = first + part[:, None] - positions
                hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
                mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)
                queries = slice((stop - len(part)) * per_token, stop * per_token)
                keys = _merged(slice(a, b) for a, b, _ in runs)
                chunks.append(Chunk(queries, keys, mask.repeat_interleave(per_token, dim=0).to(device)))
            begin += length
    return chunks


def _merged(slices: Iterable[slice]) -> tuple[slice, ...]:
    """Merge adjacent slices and drop empty ones."""
    merged: list[slice] = []
    for part in slices:
        if merged and merged[-1].stop == part.start:
            part = slice(merged.pop().start, part.stop)
        if part.start < part.stop:
            merged.append(part)
    return tuple(merged)
