"""Packed attention by FlexAttention (arXiv:2412.05496), which skips blocks of keys that are masked for a block of queries."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention

from prefdag.text.scoring.packing import Segment

logger = logging.getLogger(__name__)


def flex_packed_attention(
    flex: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: tuple[Segment, ...],
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """`packed_attention` by `flex`, which is `flex_attention`, compiled or not: (1, T, heads, d).

    `softcap` and `sinks` are those of `chunked_attention`.
    """
    options: dict[str, Any] = {"scale": scaling, "enable_gqa": True}
    options["block_mask"] = flex_mask(segments, key.shape[2] - query.shape[2], sliding_window, query.device)
    if softcap is not None:
        options["score_mod"] = _capped(softcap)
    if sinks is None:
        out = flex(query, key, value, **options)
    else:
        out, auxiliary = flex(query, key, value, return_aux=AuxRequest(lse=True), **options)
        # Of exp(lse) + exp(sink), the share that is not the sink's.
        out = (out * torch.sigmoid(auxiliary.lse - sinks[:, None])[..., None]).to(out.dtype)
    return out.transpose(1, 2).contiguous()


@functools.cache  # one function per value: torch compiles each function that it gets
def _capped(softcap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


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
