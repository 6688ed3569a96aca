"""Batched generation: greedy, or sampled such that an answer depends on its prompt's seed, not on the rest of the batch."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from prefdag.distributed import sharding
from prefdag.distributed.sharing import shared_out
from prefdag.lifecycle.errors import NumericError
from prefdag.text.generation.noise import draw, key_of
from prefdag.text.model import Unadapted

# What a model may have of its own to change how `generate` calls it.
HOOKS = (
    "generate",
    "prepare_inputs_for_generation",
    "_prepare_cache_for_generation",
    "_prepare_position_ids_for_generation",
    "_update_model_kwargs_for_generation",
)

Seeds = Sequence[Sequence[int] | None]  # of the answers to a prompt


@torch.no_grad()
def continuations(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[Seeds],
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
    Models with a cache of their own, such as state-space models, are left to transformers' `generate`: the same answers, but
    a prompt is read for each of them.

    Args:
        seeds: by prompt, one per answer: integers to sample it with, or None for the greedy answer. A prompt is read once
            for all of them. `[[[*seed, i] for i in range(k)] for seed in ...]` asks for k samples of each prompt.
        sampling: temperature and top_p.
        stop_ids: the tokens at which an answer ends, at least one.
        batch_size: prompts per batch, padded on the left. Answers do not depend on it, except for ties within rounding.

    Raises:
        NumericError: the model's logits are not numbers.
    """
    batch = _batch if _is_common(model) else _batch_by_generate

    def compute(rows: Sequence[int]) -> list[list[list[int]]]:
        own = [seeds[i] for i in rows]
        written = iter(batch(model, [prompts[i] for i in rows], own, sampling, max_new_tokens, stop_ids))
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
    seeds: Sequence[Seeds],
    sampling: tuple[float, float],
    max_new_tokens: int,
    stop_ids: Sequence[int],
) -> list[list[int]]:
    """The answers to a batch of prompts, prompt by prompt. A row of the batch that has ended leaves it."""
    sharded = sharding.is_sharded(model)
    ids, mask = _padded(model, prompts, stop_ids[0])
    device = ids.device
    called, cache, mask = _start(model, mask)
    logits, cache = _forward(called, ids, mask, cache)

    keys = _keys(seeds)
    written: list[list[int]] = [[] for _ in keys]
    writing = list(range(len(keys)))  # the answer that each row writes
    rows = torch.tensor([i for i, each in enumerate(seeds) for _ in each], dtype=torch.long, device=device)
    _make_room(cache, max_new_tokens)
    logits, mask = logits[rows], _select(mask, cache, rows)  # from here on, a row is an answer
    for step in range(max_new_tokens):
        tokens = _next(logits, [keys[answer] for answer in writing], sampling, step)
        for answer, token in zip(writing, tokens.tolist(), strict=False):
            written[answer].append(token)
        unfinished = _gaps_filled([row for row, i in enumerate(writing) if written[i][-1] not in stop_ids])
        # All processes compute a sharded model together, until the last one has its answers. Others keep an idle row.
        if step + 1 == max_new_tokens or not (sharding.summed(len(unfinished)) if sharded else unfinished):
            break
        writing = [writing[row] for row in unfinished]
        rows = torch.tensor(unfinished or [0], device=device)
        mask = F.pad(_select(mask, cache, rows), (0, 1), value=1)
        logits, cache = _forward(called, tokens[rows, None], mask, cache)
    return written


class _Draw(LogitsProcessor):
    """Leaves `generate` no choice but the tokens of `_next`."""

    def __init__(self, keys: Sequence[int | None], sampling: tuple[float, float], prompt_tokens: int) -> None:
        self.keys, self.sampling, self.prompt_tokens = keys, sampling, prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens = _next(scores, self.keys, self.sampling, input_ids.shape[1] - self.prompt_tokens)
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens[:, None], 0.0)


def _batch_by_generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[Seeds],
    sampling: tuple[float, float],
    max_new_tokens: int,
    stop_ids: Sequence[int],
) -> list[list[int]]:
    """As `_batch`, by transformers' own loop, for models that need it."""
    repeated = [prompt for prompt, own in zip(prompts, seeds, strict=True) for _ in own]
    ids, mask = _padded(model, repeated, stop_ids[0])
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,  # `_Draw` samples
        eos_token_id=list(stop_ids),
        pad_token_id=stop_ids[0],
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_new_tokens=0,
    )
    generator: Any = model
    if not len(ids):
        return []
    output = generator.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=config,
        logits_processor=LogitsProcessorList([_Draw(_keys(seeds), sampling, ids.shape[1])]),
    )
    answers = output[:, ids.shape[1] :].tolist()
    ends = [next((place for place, token in enumerate(ids) if token in stop_ids), len(ids)) for ids in answers]
    return [ids[: end + 1] for ids, end in zip(answers, ends, strict=True)]


def _is_common(model: nn.Module) -> bool:
    """Whether `generate` would call the model just as `_batch` does: no hooks, and only keys and values in its cache."""
    wrapped: Any = model.policy if isinstance(model, Unadapted) else model
    base: Any = wrapped.get_base_model() if isinstance(wrapped, PeftModel) else wrapped
    hooked = [hook for hook in HOOKS if getattr(type(base), hook, None) is not getattr(GenerationMixin, hook)]
    if hooked or hasattr(base, "create_masks_for_generate") or not base._supports_default_dynamic_cache():
        return False
    layers = DynamicCache(config=base.config.get_text_config(decoder=True)).layers
    return (
        not base._is_stateful
        and {"position_ids", "logits_to_keep"} <= inspect.signature(base.forward).parameters.keys()
        and {type(each) for each in layers} <= {DynamicLayer, DynamicSlidingWindowLayer}
    )


def _padded(model: nn.Module, prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids, padded on the left, and their mask, both (prompts, tokens), on the model's device."""
    device = next(model.parameters()).device
    width = max(map(len, prompts), default=0)
    ids = [[pad] * (width - len(each)) + list(each) for each in prompts]
    mask = [[0] * (width - len(each)) + [1] * len(each) for each in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _keys(seeds: Sequence[Seeds]) -> list[int | None]:
    """The key of each answer; None: it is greedy."""
    return [None if seed is None else key_of(seed) for each in seeds for seed in each]


def _gaps_filled(rows: Sequence[int]) -> list[int]:
    """The same rows in another order: as many as possible stay in their places, and the last ones fill the gaps."""
    staying = {row for row in rows if row < len(rows)}
    moving = iter([row for row in rows if row >= len(rows)])
    return [row if row in staying else next(moving) for row in range(len(rows))]


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

    keys: Any
    values: Any

    def __init__(self, layer: Any, room: int) -> None:
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
        count = len(beam_idx)
        if count <= len(self.keys):  # in place: rows that stay are not copied
            moved = (beam_idx != torch.arange(count, device=beam_idx.device)).nonzero()[:, 0]
            for each in self._rooms:
                each[moved] = each[beam_idx[moved]]
            self._rooms = [each[:count] for each in self._rooms]
        else:
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
    if not bool(logits.amax(-1).isfinite().all()):
        raise NumericError("the model's logits are not finite numbers, so it cannot answer; check its weights")
    tokens = torch.empty(len(keys), dtype=torch.long, device=logits.device)
    rows = torch.tensor([row for row, key in enumerate(keys) if key is None], dtype=torch.long, device=logits.device)
    tokens[rows] = logits[rows].argmax(-1)
    drawn = [(row, key) for row, key in enumerate(keys) if key is not None]
    if drawn:
        rows, own = torch.tensor(drawn, device=logits.device).unbind(-1)
        tokens[rows] = draw(logits[rows], *sampling, own, step)
    return tokens
