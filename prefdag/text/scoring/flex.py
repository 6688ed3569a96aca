"""Packed attention by FlexAttention (arXiv:2412.05496), which skips blocks of keys that are masked for a block of queries."""

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from prefdag.text.scoring.packing import Segment

logger = logging.getLogger(__name__)

BLOCK = 128  # tokens, as in torch
ABSENT = 2**40  # above every group, branch and position
FlexAttention = Callable[..., Any]  # `flex_attention`, compiled or not
# Each `Kind` is compiled once, which takes many seconds. Beyond torch's own limit of 8, it would give up.
torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 128)


class Kind(NamedTuple):
    """What a kernel is compiled for: all that matters of a call except its lengths."""

    heads: int
    kv_heads: int
    width: int
    value_width: int
    dtype: torch.dtype
    device: torch.device
    prefix: bool
    window: bool
    softcap: bool
    sinks: bool
    gradients: bool


def flex_for(
    query: Tensor, key: Tensor, value: Tensor, window: int | None, softcap: float | None, sinks: Tensor | None
) -> FlexAttention | None:
    """FlexAttention compiled for these arguments of `flex_packed_attention`; None if it cannot compute them here."""
    (_, heads, tokens, width), (_, kv_heads, keys, value_width) = query.shape, value.shape
    options = (keys > tokens, window is not None, softcap is not None, sinks is not None, torch.is_grad_enabled())
    return _compiled(Kind(heads, kv_heads, width, value_width, query.dtype, query.device, *options))


@functools.cache
def _compiled(kind: Kind) -> FlexAttention | None:
    """FlexAttention, after a trial. None, with a warning in the log, if it cannot be compiled or fails."""
    flex: FlexAttention = torch.compile(flex_attention, dynamic=True, fullgraph=True)
    # More than one block of 128 tokens: torch compiles a size of 1 anew.
    rows, tokens, prefix = (Segment(0, 200, (40, 30)), Segment(270, 50, (20,))), 340, 2 if kind.prefix else 0
    q, k, v = (
        torch.zeros(1, heads, n, width, dtype=kind.dtype, device=kind.device, requires_grad=kind.gradients)
        for heads, n, width in (
            (kind.heads, tokens, kind.width),
            (kind.kv_heads, prefix + tokens, kind.width),
            (kind.kv_heads, prefix + tokens, kind.value_width),
        )
    )
    sinks = torch.zeros(kind.heads, dtype=kind.dtype, device=kind.device) if kind.sinks else None
    try:
        out = flex_packed_attention(
            flex, q, k, v, rows, None, 4 if kind.window else None, 30.0 if kind.softcap else None, sinks
        )
        if kind.gradients:
            out.sum().backward()
    except Exception as error:  # whatever Triton, its compiler or the driver may raise
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        logger.warning(
            "FlexAttention does not work here for heads of width %d in %s (%s); using chunked attention, which is slower",
            *(kind.width, str(kind.dtype).removeprefix("torch."), reason),
        )
        return None
    return flex


def flex_packed_attention(
    flex: FlexAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: tuple[Segment, ...],
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """`packed_attention` by `flex`: (1, T, heads, d).

    `softcap` and `sinks` are those of `chunked_attention`.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    options: dict[str, Any] = {
        "scale": 1.0,  # torch compiles anew for another number here
        "score_mod": _scores(scaling, softcap, query.device),
        "block_mask": flex_mask(segments, key.shape[2] - query.shape[2], sliding_window, query.device),
        "enable_gqa": True,
    }
    if sinks is None:
        out = flex(query, key, value, **options)
    else:
        out, auxiliary = flex(query, key, value, return_aux=AuxRequest(lse=True), **options)
        # Of exp(lse) + exp(sink), the share that is not the sink's.
        out = (out * torch.sigmoid(auxiliary.lse - sinks[:, None])[..., None]).to(out.dtype)
    return out.transpose(1, 2).contiguous()


@functools.cache
def _scores(scaling: float, softcap: float | None, device: torch.device) -> Callable[..., Tensor]:
    """What becomes of the product of a query and a key: scaled, then capped."""
    scale, cap = (torch.tensor(number, device=device) for number in (scaling, softcap or 1.0))

    def scaled(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return scale * score

    def capped(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return cap * torch.tanh(scale * score / cap)

    return scaled if softcap is None else capped


@functools.lru_cache(maxsize=2)
def flex_mask(segments: tuple[Segment, ...], prefix: int, window: int | None, device: torch.device) -> BlockMask:
    """The block mask of a row of T tokens over P + T keys, for `flex_attention`.

    It is `create_block_mask` of `visible`, without a mask of T x (P + T) in memory on the way.
    """
    # For each key: its group, its response in the group (0: the prompt), its position. The prefix is in no group (-1).
    pieces = [(-1, 0, -prefix, prefix)]
    for number, (_, prompt, responses) in enumerate(segments):
        pieces.append((number, 0, 0, prompt))
        pieces += [(number, branch, prompt, length) for branch, length in enumerate(responses, start=1)]
    *firsts, lengths = torch.tensor(pieces).T
    keys = torch.stack(firsts).repeat_interleave(lengths, dim=1)
    keys[2] += torch.arange(keys.shape[1]) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    group, branch, position = keys.to(device).contiguous()

    def visible(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        q = q + prefix
        same = (group[k] == group[q]) & ((branch[k] == 0) | (branch[k] == branch[q])) | (group[k] < 0)
        distance = position[q] - position[k]
        return same & (distance >= 0) & (distance < window if window is not None else distance >= 0)

    some, whole = _blocks(keys[:, prefix:], keys, window)
    mask = BlockMask.from_kv_blocks(
        *_numbers_and_indices(some & ~whole, device),
        *_numbers_and_indices(whole, device),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(keys.shape[1] - prefix, keys.shape[1]),
    )
    for tensor in mask.as_tuple():
        if isinstance(tensor, Tensor):
            for dim in range(2, tensor.ndim):
                torch._dynamo.maybe_mark_dynamic(tensor, dim)
    return mask


def _blocks(queries: Tensor, keys: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
    """For each block of queries and block of keys, whether some and whether all pairs are visible, (blocks, blocks) bool.

    "Some" may be true of blocks without a visible pair; "all" may be false of blocks with visible pairs only. The arguments
    are group, branch and position of each token, (3, tokens).
    """
    (q_low, q_high, q_full), (k_low, k_high, k_full) = _bounds(queries), _bounds(keys)
    q_low, q_high, k_low, k_high = q_low[:, :, None], q_high[:, :, None], k_low[:, None], k_high[:, None]
    (q_group, q_branch, q_first), (q_group_high, q_branch_high, q_last) = q_low, q_high
    (k_group, k_branch, k_first), (k_group_high, k_branch_high, k_last) = k_low, k_high
    one_group = (q_group == q_group_high) & (k_group == k_group_high) & (q_group == k_group)
    one_branch = one_group & (q_branch == q_branch_high) & (k_branch == k_branch_high)
    sees = (k_branch == 0) | (k_branch == q_branch)
    prefix = k_group < 0
    some = prefix | ((q_group <= k_group_high) & (k_group <= q_group_high))
    some &= ~(one_branch & ~sees) & ~(one_group & (k_first > q_last))
    whole = ((one_branch & sees) | (k_group_high < 0)) & (k_last <= q_first) & q_full[:, None] & k_full[None]
    if window is not None:
        some &= ~((one_group | (k_group_high < 0)) & (q_first - k_last >= window))
        whole &= q_last - k_first < window
    return some, whole


def _bounds(tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The lowest and highest value in each block, (3, blocks), and whether it has all its tokens, (blocks)."""
    blocks = F.pad(tokens, (0, -tokens.shape[1] % BLOCK), value=ABSENT).unflatten(1, (-1, BLOCK))
    absent = blocks == ABSENT
    return blocks.amin(2), blocks.masked_fill(absent, -ABSENT).amax(2), ~absent[0].any(1)


def _numbers_and_indices(blocks: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """A mask of blocks as `BlockMask` holds it: how many each row has, (1, 1, rows), and which, (1, 1, rows, columns)."""
    order = blocks.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32).to(device)[None, None], order.to(device, torch.int32)[None, None]
