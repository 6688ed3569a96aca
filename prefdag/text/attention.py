"""Attention for packed rows: each group apart, each response over its prompt and itself.

Registered with transformers as an attention implementation, so that any decoder which takes one (Llama, GPT-2, Qwen, ...)
runs packed rows unchanged. No mask of the size of the row is ever made: a group costs one causal call over its prompt and
first response, and one call for each further response. A trained prefix (prefix tuning) is seen by all of them.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from prefdag.text.packing import Segment

NAME = "prefdag_packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Sequence[Segment],
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Query (1, heads, T, d), key and value (1, kv_heads, P + T, d) to (1, T, heads, d), in the dtype of the query.

    The first P keys and values, 0 without a prefix, are no tokens of the row: every token sees them.
    """
    groups = query.shape[1] // key.shape[1]  # grouped-query attention, arXiv:2305.13245
    key, value = (t.repeat_interleave(groups, dim=1) if groups > 1 else t for t in (key, value))
    prefix = key.shape[2] - query.shape[2]

    def attend(start: int, end: int, prompt: tuple[int, int] = (0, 0)) -> Tensor:
        """Tokens start..end over the prefix, the prompt, and each other up to themselves."""
        seen = [(0, prefix), *((a + prefix, b + prefix) for a, b in (prompt, (start, end)))]
        k, v = (torch.cat([t[:, :, a:b] for a, b in seen if a < b], dim=2) for t in (key, value))
        before = k.shape[2] - (end - start)
        mask = (
            torch.ones(end - start, k.shape[2], dtype=torch.bool, device=query.device).tril(before) if before else None
        )
        return F.scaled_dot_product_attention(
            query[:, :, start:end], k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, dropout_p=dropout
        )

    outputs = []
    for start, prompt, responses in segments:
        end = start + prompt + responses[0]
        outputs.append(attend(start, end))
        for length in responses[1:]:
            outputs.append(attend(end, end + length, (start, start + prompt)))
            end += length
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
