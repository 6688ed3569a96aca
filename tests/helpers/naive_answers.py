"""The naive twin of `generation.decoding` and `generation.stream`: one answer, by transformers' own greedy search."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


@torch.no_grad()
def continuation(model: nn.Module, prompt_ids: Sequence[int], max_new_tokens: int, eos_id: int) -> list[int]:
    """The most probable next token, then the most probable one after it, and so on, up to but without the EOS."""
    ids = torch.tensor([list(prompt_ids)], device=next(model.parameters()).device)
    generator: Any = model
    output = generator.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=eos_id,
        pad_token_id=eos_id,
    )
    new = output[0, ids.shape[1] :].tolist()
    return new[:-1] if new[-1:] == [eos_id] else new
