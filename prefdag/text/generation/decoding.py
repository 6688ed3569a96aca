"""Batched generation: greedy, or sampled such that an answer depends on its prompt's seed, not on the rest of the batch."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from prefdag.distributed import sharding
from prefdag.distributed.sharing import shared_out
from prefdag.text.generation.noise import draw, key_of


@torch.no_grad()
def continuations(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[Sequence[Sequence[int] | None]],
    *,
    sampling: tuple[float, float] = (1.0, 1.0),
    max_new_tokens: int,
    stop_ids: Sequence[int],
    batch_size: int,
    name: str,
) -> list[list[list[int]]]:
    """Generate one or several answers to each prompt, in batches that processes share.

    An answer has at most `max_new_tokens` ids, with a stop id as the last one if the model ended there.

    The generation config in the model's folder (penalties and so on) is ignored: answers follow the model's probabilities.

    Args:
        seeds: by prompt, one per answer: integers to sample it with, or None for the greedy answer. A prompt is read once
            for all of them.
        sampling: temperature and top_p.
        stop_ids: the tokens at which an answer ends, at least one.
        batch_size: prompts per batch, padded on the left. Answers do not depend on it, except for ties within rounding.
    """

    def compute(rows: Sequence[int]) -> list[list[list[int]]]:
        own = [seeds[i] for i in rows]
        written = iter(_batch(model, [prompts[i] for i in rows], own, sampling, max_new_tokens, stop_ids))
        return [[next(written) for _ in each] for each in own]

    # Batches of prompts of similar length need little padding.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    each_batch = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    generated = shared_out(each_batch, compute, "prompt", name)
    answers = dict(zip(order, (answer for batch in generated for answer in batch), strict=True))
    return [answers[i] for i in range(len(prompts))]


def _batch(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[Sequence[Sequence[int] | None]],
    sampling: tuple[float, float],
    max_new_tokens: int,
    stop_ids: Sequence[int],
) -> list[list[int]]:
    """The answers to a batch of prompts, prompt by prompt. A row of the batch that has ended leaves it."""
    device = next(model.parameters()).device
    sharded = sharding.is_sharded(model)
    width = max(map(len, prompts))
    ids = torch.tensor([[stop_ids[0]] * (width - len(each)) + list(each) for each in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts], device=device)
    called, cache, mask = _start(model, mask)
    logits, cache = _forward(called, ids, mask, cache)

    keys = [None if seed is None else key_of(seed) for each in seeds for seed in each]
    written: list[list[int]] = [[] for _ in keys]
    writing = list(range(len(keys)))  # the answer that each row writes
    rows = torch.tensor([i for i, each in enumerate(seeds) for _ in each], device=device)
    _make_room(cache, max_new_tokens)
    logits, mask = logits[rows], _select(mask, cache, rows)  # from here on, a row is an answer
    for step in range(max_new_tokens):
        tokens = _next(logits, [keys[answer] for answer in writing], sampling, step)
        for answer, token in zip(writing, tokens.tolist(), strict=False):
            written[answer].append(token)
        unfinished = [row for row, answer in enumerate(writing) if written[answer][-1] not in stop_ids]
        # All processes compute a sharded model together, until the last one has its answers. Others keep an idle row.
        if step + 1 == max_new_tokens or not (sharding.summed(len(unfinished)) if sharded else unfinished):
            break
        writing = [writing[row] for row in unfinished]
        rows = torch.tensor(unfinished or [0], device=device)
        mask = F.pad(_select(mask, cache, rows), (0, 1), value=1)
        logits, cache = _forward(called, tokens[rows, None], mask, cache)
    return written


def _start(model: nn.Module, mask: Tensor) -> tuple[nn.Module, Any, Tensor]:
    """The module to call, its cache before the prompts, and the mask over cache and prompts. A prefix lies in the cache."""
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        prefix = model.get_prompt(len(mask))
        return model.get_base_model(), prefix, F.pad(mask, (model.active_peft_config.num_virtual_tokens, 0), value=1)
    return model, None, mask


def _forward(model: nn.Module, ids: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """Logits of the last tokens, (rows, vocabulary) in float32, and the cache after them.

    Args:
        ids: the next tokens, (rows, new).
        mask: 1 for tokens and 0 for padding, (rows, cached + new).
    """
    places = (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=places,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1].float(), output.past_key_values


class _RoomyLayer(DynamicLayer):
    """Keys and values of a layer, with room for all tokens to come: `DynamicLayer` copies everything for each of them."""

    def __init__(self, layer: DynamicLayer, room: int) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self._rooms = [
            F.pad(each, (0, 0, 0, room)) for each in (layer.keys, layer.values)
        ]  # (rows, heads, places, head_dim)
        self._show(layer.keys.shape[-2])

    def _show(self, length: int) -> None:
        self.keys, self.values = (each[:, :, :length] for each in self._rooms)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        for room, new in zip(self._rooms, (key_states, value_states), strict=True):
            room[:, :, start:end] = new
        self._show(end)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._rooms = [each[beam_idx] for each in self._rooms]
        self._show(self.keys.shape[-2])


def _make_room(cache: Any, tokens: int) -> None:
    """Let the plain layers of a cache grow in place. Others, such as those of a sliding window, stay as they are."""
    plain = [type(each) is DynamicLayer and each.is_initialized for each in cache.layers]
    cache.layers = [
        _RoomyLayer(each, tokens) if is_plain else each for each, is_plain in zip(cache.layers, plain, strict=True)
    ]


def _select(mask: Tensor, cache: Any, rows: Tensor) -> Tensor:
    """The `rows` of a mask. The cache is left with the same rows."""
    if len(rows) == len(mask) and rows.equal(torch.arange(len(mask), device=rows.device)):
        return mask
    cache.reorder_cache(rows)
    return mask[rows]


def _next(logits: Tensor, keys: Sequence[int | None], sampling: tuple[float, float], step: int) -> Tensor:
    """The next token of each row: drawn if it has a key, otherwise the likeliest."""
    tokens = logits.argmax(-1)
    drawn = [(row, key) for row, key in enumerate(keys) if key is not None]
    if drawn:
        rows, own = torch.tensor(drawn, device=logits.device).unbind(-1)
        tokens[rows] = draw(logits[rows], *sampling, own, step)
    return tokens
