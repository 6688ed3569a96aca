"""Attention for packed rows: a token attends to its prompt and to earlier tokens of its own response, and to nothing else.

Registered with transformers as an attention implementation, so that any decoder that accepts one (Llama, GPT-2, Qwen, ...)
runs packed rows unchanged. All tokens attend to a trained prefix (prefix tuning). No mask of the whole row is ever built:

- on a GPU, FlexAttention (arXiv:2412.05496) skips blocks of keys that are masked for a block of queries;
- elsewhere, torch's kernels get the queries in chunks, each with the keys up to its last token.
"""

import functools
import logging
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from prefdag.text.scoring.packing import Segment

NAME = "prefdag_packed"
CHUNK_TOKENS = (
    128  # tokens per call on a CPU: small enough to skip most later keys, large enough to keep the kernel busy
)

logger = logging.getLogger(__name__)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: tuple[Segment, ...],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls, with grouped-query attention (arXiv:2305.13245).

    Args:
        query: (1, heads, T, d).
        key, value: (1, kv_heads, P + T, d). The first P belong to a trained prefix, which every token attends to; without
            one, P is 0.

    Returns:
        (1, T, heads, d), in the dtype of the query, and no attention weights.
    """
    prefix = key.shape[2] - query.shape[2]
    if query.device.type == "cuda" and not dropout and (flex := compiled_flex_attention(query.device)):
        mask = flex_mask(segments, prefix, sliding_window, query.device)
        out = flex(query, key, value, block_mask=mask, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2).contiguous(), None
    return chunked_attention(query, key, value, segments, scaling, dropout, sliding_window), None


class Chunk(NamedTuple):
    """Consecutive tokens of one prompt or one response whose queries go into one kernel call."""

    queries: slice  # into the row's queries, of which each token has `per_token`
    keys: tuple[slice, ...]  # into the keys, which start with the P of the prefix
    mask: Tensor  # (queries, keys): added to the scores, 0 or -inf


def chunked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: tuple[Segment, ...],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
) -> Tensor:
    """`packed_attention`, chunk by chunk: (1, T, heads, d).

    Query heads that share a key head become additional queries of that head, next to each other for each token.
    """
    heads, kv_heads = query.shape[1], key.shape[1]
    per_token = heads // kv_heads
    prefix = key.shape[2] - query.shape[2]
    chunks = _chunks(segments, prefix, sliding_window, per_token, query.dtype, query.device)
    queries = query.unflatten(1, (kv_heads, per_token)).transpose(2, 3).flatten(2, 3)
    if query.device.type == "cpu" and not (dropout or torch.is_autocast_enabled("cpu")):
        out = _ChunkedAttention.apply(queries, key, value, chunks, scaling)
    else:
        parts = []
        for chunk in chunks:
            k, v = _keys_and_values(key, value, chunk)
            parts.append(
                F.scaled_dot_product_attention(
                    queries[:, :, chunk.queries], k, v, attn_mask=chunk.mask, scale=scaling, dropout_p=dropout
                )
            )
        out = torch.cat(parts, dim=2)
    return out.unflatten(2, (-1, per_token)).permute(0, 2, 1, 3, 4).flatten(2, 3)


class _ChunkedAttention(torch.autograd.Function):
    """Calls the CPU kernel behind `scaled_dot_product_attention` for each chunk, and adds all gradients into one tensor.

    Autograd would allocate a tensor of the length of the row for every slice of keys and values, and sum them.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, key: Tensor, value: Tensor, chunks: list[Chunk], scaling: float | None
    ) -> Tensor:
        results = [
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                queries[:, :, chunk.queries], *_keys_and_values(key, value, chunk), attn_mask=chunk.mask, scale=scaling
            )
            for chunk in chunks
        ]
        outs, log_sums = zip(*results, strict=True)
        out = torch.cat(outs, dim=2)
        ctx.save_for_backward(queries, key, value, out, *log_sums)
        ctx.chunks, ctx.scaling = chunks, scaling
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        queries, key, value, out, *log_sums = ctx.saved_tensors
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
        return torch.cat(grad_queries, dim=2), grad_key, grad_value, None, None


def _keys_and_values(key: Tensor, value: Tensor, chunk: Chunk) -> list[Tensor]:
    """The keys that a chunk attends to, and their values: (1, kv_heads, keys, d)."""
    parts = ([t[:, :, part] for part in chunk.keys] for t in (key, value))
    return [part[0] if len(part) == 1 else torch.cat(part, dim=2) for part in parts]


@functools.lru_cache(maxsize=2)  # the same for every layer
def _chunks(
    segments: tuple[Segment, ...],
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


@functools.lru_cache(maxsize=2)
def flex_mask(segments: tuple[Segment, ...], prefix: int, window: int | None, device: torch.device) -> BlockMask:
    """The block mask of a row of T tokens over P + T keys, for `flex_attention`."""
    # For each key: its group, its response in the group (0: the prompt), its position. The prefix is in no group (-1).
    rows = [(-1, 0, i - prefix) for i in range(prefix)]
    for number, (_, prompt, responses) in enumerate(segments):
        rows += [(number, 0, i) for i in range(prompt)]
        for branch, length in enumerate(responses, start=1):
            rows += [(number, branch, prompt + i) for i in range(length)]
    group, branch, position = torch.tensor(rows, device=device).T.contiguous()

    def visible(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        q = q + prefix
        same = (group[k] == group[q]) & ((branch[k] == 0) | (branch[k] == branch[q])) | (group[k] < 0)
        distance = position[q] - position[k]
        return same & (distance >= 0) & (distance < window if window is not None else distance >= 0)

    return create_block_mask(visible, None, None, len(rows) - prefix, len(rows), device=str(device))


@functools.cache
def compiled_flex_attention(device: torch.device) -> Callable[..., Any] | None:
    """FlexAttention compiled for this device. None, with a warning in the log, if it cannot be compiled."""
    flex: Callable[..., Any] = torch.compile(flex_attention, dynamic=True)
    try:
        q = torch.zeros(1, 2, 16, 16, device=device, requires_grad=True)
        mask = flex_mask((Segment(0, 8, (4, 4)),), 0, None, device)
        flex(q, q, q, block_mask=mask, enable_gqa=True).sum().backward()
    except Exception as error:  # whatever Triton, its compiler or the driver may raise
        logger.warning("FlexAttention does not compile here (%s); using chunked attention, which is slower", error)
        return None
    return flex


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
