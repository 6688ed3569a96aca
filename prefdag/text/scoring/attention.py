"""Attention for packed rows: each group apart, each response over its prompt and itself.

Registered with transformers as an attention implementation, so that any decoder which takes one (Llama, GPT-2, Qwen, ...)
runs packed rows unchanged. A trained prefix (prefix tuning) is seen by all tokens. No mask of the size of the row is ever made:

- on a GPU, FlexAttention (arXiv:2412.05496) skips the blocks of keys that a block of queries does not see;
- elsewhere the queries go to torch's kernels in pieces, each with the keys up to its end.
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
LONGEST = 128  # tokens a call on a CPU: so few that most keys after them are skipped, enough for its kernel

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
    """Query (1, heads, T, d), key and value (1, kv_heads, P + T, d) to (1, T, heads, d), in the dtype of the query.

    The first P keys and values, 0 without a prefix, are no tokens of the row: every token sees them. Query heads share
    key heads in groups, arXiv:2305.13245.
    """
    prefix = key.shape[2] - query.shape[2]
    if query.device.type == "cuda" and not dropout and (flex := compiled_flex(query.device)):
        mask = flex_mask(segments, prefix, sliding_window, query.device)
        found = flex(query, key, value, block_mask=mask, scale=scaling, enable_gqa=True)
        return found.transpose(1, 2).contiguous(), None
    return in_pieces(query, key, value, segments, scaling, dropout, sliding_window), None


class Piece(NamedTuple):
    """Consecutive tokens of one prompt or one response, whose queries go into one call."""

    queries: slice  # of a row's queries, `per_token` of which each token has
    seen: tuple[slice, ...]  # of the keys, the first P of which are the prefix
    mask: Tensor  # (queries, keys seen): 0 where seen, -inf where not


def in_pieces(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: tuple[Segment, ...],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
) -> Tensor:
    """`packed_attention`, piece by piece: (1, T, heads, d).

    Query heads that share a key head lie behind each other, token by token, as more queries of that head.
    """
    heads, kv_heads = query.shape[1], key.shape[1]
    per_token = heads // kv_heads
    prefix = key.shape[2] - query.shape[2]
    pieces = _pieces(segments, prefix, sliding_window, per_token, query.dtype, query.device)
    queries = query.unflatten(1, (kv_heads, per_token)).transpose(2, 3).flatten(2, 3)
    if query.device.type == "cpu" and not (dropout or torch.is_autocast_enabled("cpu")):
        out = _InPieces.apply(queries, key, value, pieces, scaling)
    else:
        parts = []
        for piece in pieces:
            k, v = _seen(key, value, piece)
            parts.append(
                F.scaled_dot_product_attention(
                    queries[:, :, piece.queries], k, v, attn_mask=piece.mask, scale=scaling, dropout_p=dropout
                )
            )
        out = torch.cat(parts, dim=2)
    return out.unflatten(2, (-1, per_token)).permute(0, 2, 1, 3, 4).flatten(2, 3)


class _InPieces(torch.autograd.Function):
    """The pieces by the kernel behind `scaled_dot_product_attention` on CPUs, each gradient in one tensor.

    Autograd would make a tensor as long as the row for every slice of keys and values, and add them up.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, key: Tensor, value: Tensor, pieces: list[Piece], scaling: float | None
    ) -> Tensor:
        found = [
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                queries[:, :, piece.queries], *_seen(key, value, piece), attn_mask=piece.mask, scale=scaling
            )
            for piece in pieces
        ]
        outs, log_sums = zip(*found, strict=True)
        out = torch.cat(outs, dim=2)
        ctx.save_for_backward(queries, key, value, out, *log_sums)
        ctx.pieces, ctx.scaling = pieces, scaling
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        queries, key, value, out, *log_sums = ctx.saved_tensors
        of_queries, of_key, of_value = [], torch.zeros_like(key), torch.zeros_like(value)
        gradient = gradient.contiguous()
        for piece, log_sum in zip(ctx.pieces, log_sums, strict=True):
            own = piece.queries
            of_query, *of_seen = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                gradient[:, :, own],
                queries[:, :, own],
                *_seen(key, value, piece),
                out[:, :, own],
                log_sum,
                0.0,
                False,
                attn_mask=piece.mask,
                scale=ctx.scaling,
            )
            of_queries.append(of_query)
            lengths = [part.stop - part.start for part in piece.seen]
            for whole, seen in zip((of_key, of_value), of_seen, strict=True):
                for part, values in zip(piece.seen, seen.split(lengths, dim=2), strict=True):
                    whole[:, :, part] += values
        return torch.cat(of_queries, dim=2), of_key, of_value, None, None


def _seen(key: Tensor, value: Tensor, piece: Piece) -> list[Tensor]:
    """The keys that a piece sees, and their values: (1, kv_heads, keys seen, d)."""
    parts = ([t[:, :, part] for part in piece.seen] for t in (key, value))
    return [part[0] if len(part) == 1 else torch.cat(part, dim=2) for part in parts]


@functools.lru_cache(maxsize=2)  # every layer asks for the same
def _pieces(
    segments: tuple[Segment, ...],
    prefix: int,
    window: int | None,
    per_token: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[Piece]:
    """A row cut into pieces."""
    longest = LONGEST if device.type == "cpu" else 2**30
    found: list[Piece] = []
    for start, prompt, responses in segments:
        begin = start  # of the prompt or response that is cut
        for length, first in ((prompt, 0), *((length, prompt) for length in responses)):
            for part in torch.arange(length).tensor_split(math.ceil(length / longest)):
                stop = begin + int(part[-1]) + 1
                # Consecutive keys, and the position of the first of them: the prefix, the prompt, the piece's own.
                runs = [(0, prefix, -prefix)]
                runs += [(prefix + start, prefix + start + prompt, 0)] if begin > start else []
                runs += [(prefix + begin, prefix + stop, first)]
                positions = torch.cat([torch.arange(b - a) + position for a, b, position in runs])
                apart = first + part[:, None] - positions
                hidden = (apart < 0) if window is None else (apart < 0) | (apart >= window)
                mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)
                queries = slice((stop - len(part)) * per_token, stop * per_token)
                seen = _joined(slice(a, b) for a, b, _ in runs)
                found.append(Piece(queries, seen, mask.repeat_interleave(per_token, dim=0).to(device)))
            begin += length
    return found


def _joined(slices: Iterable[slice]) -> tuple[slice, ...]:
    """The same places in fewer slices, none of them empty."""
    found: list[slice] = []
    for part in slices:
        if found and found[-1].stop == part.start:
            part = slice(found.pop().start, part.stop)
        if part.start < part.stop:
            found.append(part)
    return tuple(found)


@functools.lru_cache(maxsize=2)
def flex_mask(segments: tuple[Segment, ...], prefix: int, window: int | None, device: torch.device) -> BlockMask:
    """What each token of a row of T sees of P + T keys, for `flex_attention`: who sees whom is said in `visible`."""
    # Of each key: its group, its response within that (0: the prompt), its position. A prefix is of no group.
    rows = [(-1, 0, i - prefix) for i in range(prefix)]
    for number, (_, prompt, responses) in enumerate(segments):
        rows += [(number, 0, i) for i in range(prompt)]
        for branch, length in enumerate(responses, start=1):
            rows += [(number, branch, prompt + i) for i in range(length)]
    group, branch, position = torch.tensor(rows, device=device).T.contiguous()

    def visible(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        q = q + prefix
        same = (group[k] == group[q]) & ((branch[k] == 0) | (branch[k] == branch[q])) | (group[k] < 0)
        apart = position[q] - position[k]
        return same & (apart >= 0) & (apart < window if window is not None else apart >= 0)

    return create_block_mask(visible, None, None, len(rows) - prefix, len(rows), device=str(device))


@functools.cache
def compiled_flex(device: torch.device) -> Callable[..., Any] | None:
    """FlexAttention for this device; None, with a line in the log, where it cannot be compiled."""
    flex: Callable[..., Any] = torch.compile(flex_attention, dynamic=True)
    try:
        q = torch.zeros(1, 2, 16, 16, device=device, requires_grad=True)
        mask = flex_mask((Segment(0, 8, (4, 4)),), 0, None, device)
        flex(q, q, q, block_mask=mask, enable_gqa=True).sum().backward()
    except Exception as error:  # whatever Triton, its compiler or the driver may raise
        logger.warning("FlexAttention cannot be compiled here (%s): attention piece by piece, more slowly", error)
        return None
    return flex


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
