"""Answers by the batch: greedy, or sampled so that an answer depends on its prompt's own seed and not on its neighbours."""

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

from prefdag.runtime.progress import progress


class GumbelNoise(LogitsProcessor):
    """Makes the argmax a sample: argmax(log p + g) is distributed as p where g is Gumbel noise (arXiv:1411.0030).

    Each row draws from a generator of its own, as many numbers a step as there are words, whoever else is in the batch.
    """

    def __init__(self, generators: Sequence[np.random.Generator]) -> None:
        self.generators = generators

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores with noise, (rows, vocabulary); a word that was ruled out, at minus infinity, stays there."""
        # -log of an exponential is Gumbel; float32 can draw 0, whose log is infinite.
        waits = np.stack([each.standard_exponential(scores.shape[-1], dtype=np.float32) for each in self.generators])
        return scores - torch.from_numpy(waits).to(scores).clamp_min(torch.finfo(torch.float32).tiny).log()


def sampler(temperature: float, top_p: float, seeds: Sequence[Sequence[int]]) -> LogitsProcessorList:
    """Logits to samples at a temperature among the likeliest words that hold `top_p` of the probability (arXiv:1904.09751).

    Args:
        seeds: of each row of the batch, numbers from 0 on.
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
    eos_id: int,
    batch_size: int,
    name: str,
    sampling: tuple[float, float] | None = None,
    seeds: Sequence[Sequence[int]] = (),
) -> list[list[int]]:
    """How a model goes on after each prompt: at most `max_new_tokens` ids, the last of them the EOS where it came to one.

    Penalties and the like that a model's folder asks for are left aside: the words are as likely as the model says.

    Args:
        batch_size: prompts at once, padded on the left; the answers do not depend on it, but for ties within rounding.
        sampling: temperature and top_p; None: greedy.
        seeds: of each prompt, where it is sampled.
    """
    device = next(model.parameters()).device
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,  # the noise is in the logits
        eos_token_id=eos_id,
        pad_token_id=eos_id,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_new_tokens=0,
    )
    generator: Any = model
    found: dict[int, list[int]] = {}
    # Prompts of a length stand together: little padding.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    with progress(len(prompts), "answer", name) as bar:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            width = max(len(prompts[i]) for i in rows)
            padded = [[eos_id] * (width - len(prompts[i])) + list(prompts[i]) for i in rows]
            mask = [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in rows]
            output = generator.generate(
                input_ids=torch.tensor(padded, device=device),
                attention_mask=torch.tensor(mask, device=device),
                generation_config=config,
                logits_processor=sampler(*sampling, [seeds[i] for i in rows]) if sampling else LogitsProcessorList(),
            )
            for i, new in zip(rows, output[:, width:].tolist(), strict=True):
                found[i] = new[: new.index(eos_id) + 1] if eos_id in new else new
            bar.update(len(rows))
    return [found[i] for i in range(len(prompts))]
