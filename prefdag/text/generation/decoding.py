"""Batched generation: greedy, or sampled such that an answer depends on its prompt's seed, not on the rest of the batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from prefdag.distributed.sharing import shared_out


class GumbelNoise(LogitsProcessor):
    """Makes greedy search sample: argmax(log p + g) is distributed as p if g is Gumbel noise (arXiv:1411.0030).

    Each row has its own generator and draws one number per vocabulary entry and step, whatever else is in the batch.
    """

    def __init__(self, generators: Sequence[np.random.Generator]) -> None:
        self.generators = generators

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores plus noise, (rows, vocabulary). A token at minus infinity stays there."""
        # -log of an exponential variable is Gumbel. In float32 the draw can be 0, whose log is infinite.
        draws = np.stack([each.standard_exponential(scores.shape[-1], dtype=np.float32) for each in self.generators])
        return scores - torch.from_numpy(draws).to(scores).clamp_min(torch.finfo(torch.float32).tiny).log()


def sampler(temperature: float, top_p: float, seeds: Sequence[Sequence[int]]) -> LogitsProcessorList:
    """Logits processors for sampling with temperature and nucleus sampling (top-p, arXiv:1904.09751).

    Args:
        seeds: one per row of the batch, each a sequence of integers from 0 on.
    """
    noise = GumbelNoise([np.random.default_rng(list(seed)) for seed in seeds])
    nucleus = [TopPLogitsWarper(top_p)] if top_p < 1 else []
    return LogitsProcessorList([TemperatureLogitsWarper(temperature), *nucleus, noise])


@torch.no_grad()
def continuations(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    batch_size: int,
    name: str,
    sampling: tuple[float, float] | None = None,
    seeds: Sequence[Sequence[int]] = (),
) -> list[list[int]]:
    """Generate an answer to each prompt, in batches that processes share.

    An answer has at most `max_new_tokens` ids, with a stop id as the last one if the model ended there.

    The generation config in the model's folder (penalties and so on) is ignored: answers follow the model's probabilities.

    Args:
        stop_ids: the tokens at which an answer ends, at least one.
        batch_size: prompts per batch, padded on the left. Answers do not depend on it, except for ties within rounding.
        sampling: temperature and top_p. None: greedy decoding.
        seeds: one per prompt, as in `sampler`; unused in greedy decoding.
    """
    device = next(model.parameters()).device
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,  # `GumbelNoise` samples
        eos_token_id=list(stop_ids),
        pad_token_id=stop_ids[0],
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_new_tokens=0,
    )
    generator: Any = model

    def compute(rows: Sequence[int]) -> list[list[int]]:
        width = max(len(prompts[i]) for i in rows)
        padded = [[stop_ids[0]] * (width - len(prompts[i])) + list(prompts[i]) for i in rows]
        mask = [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in rows]
        output = generator.generate(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=config,
            logits_processor=sampler(*sampling, [seeds[i] for i in rows]) if sampling else LogitsProcessorList(),
        )
        return [until_stop(new) for new in output[:, width:].tolist()]

    def until_stop(new: list[int]) -> list[int]:
        end = next((place for place, token in enumerate(new) if token in stop_ids), len(new))
        return new[: end + 1]

    # Batches of prompts of similar length need little padding.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    each_batch = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    generated = shared_out(each_batch, compute, "answer", name)
    answers = dict(zip(order, (answer for batch in generated for answer in batch), strict=True))
    return [answers[i] for i in range(len(prompts))]
