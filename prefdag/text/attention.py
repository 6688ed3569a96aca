"""Attention for packed rows: each group apart, each response over its prompt and itself.

Registered with transformers as an attention implementation, so that any decoder which takes one (Llama, GPT-2, Qwen, ...)
runs packed rows unchanged. A trained prefix (prefix tuning) is seen by all tokens. No mask of the size of the row is ever made:

- on a GPU, FlexAttention (arXiv:2412.05496) skips the blocks of keys that a block of queries does not see;
- elsewhere the queries go to torch's `scaled_dot_product_attention` in pieces, each with the keys up to its end.
"""

import functools
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from prefdag.text.packing import Segment

NAME = "prefdag_packed"
LONGEST = 96  # queries a call on a CPU: so few that most keys after them are skipped, enough for its kernel

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

    length: int
    seen: tuple[int, ...]  # the pieces whose keys they see, the last being their own
    mask: Tensor  # (length, tokens of these pieces): 0 where seen, -inf where not


def in_pieces(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: tuple[Segment, ...],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
) -> Tensor:
    """`packed_attention` by `scaled_dot_product_attention`, piece by piece: (1, T, heads, d)."""
    prefix = key.shape[2] - query.shape[2]
    pieces = _pieces(segments, prefix, sliding_window, query.dtype, query.device)
    lengths = [piece.length for piece in pieces]
    group = query.shape[1] // key.shape[1]
    # The query heads of a group become rows of a batch, which share keys without copies of them. (The gradient of `split`
    # is one concatenation, where slices would each make a tensor of zeros as long as the row.)
    queries = query[0].unflatten(0, (-1, group)).transpose(0, 1).split(lengths, dim=2)
    keys, values = (t[0].split([prefix, *lengths], dim=1) for t in (key, value))
    outputs = []
    for part, piece in zip(queries, pieces, strict=True):
        k, v = (torch.cat([t[i] for i in piece.seen], dim=1).expand(group, -1, -1, -1) for t in (keys, values))
        found = F.scaled_dot_product_attention(part, k, v, attn_mask=piece.mask, scale=scaling, dropout_p=dropout)
        outputs.append(found.permute(2, 1, 0, 3))
    return torch.cat(outputs).flatten(1, 2)[None]


@functools.lru_cache(maxsize=2)  # every layer asks for the same
def _pieces(
    segments: tuple[Segment, ...], prefix: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> list[Piece]:
    """A row cut into pieces. Those of keys and values are numbered from 1; piece 0 is the prefix, which may be empty."""
    longest = LONGEST if device.type == "cpu" else 2**30
    found: list[Piece] = []
    for _, prompt, responses in segments:
        positions = {0: torch.arange(-prefix, 0)}  # of the tokens of the pieces seen so far
        for run, start in ((prompt, 0), *((length, prompt) for length in responses)):
            seen = dict(positions)
            for part in torch.arange(start, start + run).tensor_split(math.ceil(run / longest)):
                seen[len(found) + 1] = part
                apart = part[:, None] - torch.cat(list(seen.values()))
                hidden = (apart < 0) if window is None else (apart < 0) | (apart >= window)
                mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)
                found.append(Piece(len(part), tuple(seen), mask.to(device)))
            if start == 0:
                positions = seen
    return found


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
