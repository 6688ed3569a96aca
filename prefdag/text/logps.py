"""Log-probabilities of responses under a causal language model: the one scoring path of training and evaluation."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefdag.progress import progress
from prefdag.text.packing import Group, Pack, batches, pack


def token_logps(model: nn.Module, packed: Pack) -> Tensor:
    """log pi(target | prompt, response so far) of each scored token: (S,), float32, in nats.

    Vocabulary logits are computed for scored tokens only.
    """
    return -F.cross_entropy(response_logits(model, packed), packed.targets, reduction="none")


def response_logits(model: nn.Module, packed: Pack) -> Tensor:
    """The logits that predict each scored token: (S, vocabulary), float32."""
    return (
        model(
            input_ids=packed.input_ids[None],
            position_ids=packed.position_ids[None],
            logits_to_keep=packed.predictors,
            segments=packed.segments,
            use_cache=False,
        )
        .logits[0]
        .float()
    )


def response_logps(model: nn.Module, packed: Pack) -> Tensor:
    """log pi(response | prompt), summed over a response's tokens: (responses,), float32, in nats."""
    sums = torch.zeros(packed.n_responses, device=packed.targets.device)
    return sums.index_add(0, packed.owners, token_logps(model, packed))


def pair_logps(model: nn.Module, pairs: Sequence[Group]) -> tuple[Tensor, Tensor]:
    """The log-probabilities of chosen and rejected responses, each (pairs,), for groups of two responses."""
    packed = pack(pairs).to(next(model.parameters()).device)
    chosen, rejected = response_logps(model, packed).view(-1, 2).unbind(1)
    return chosen, rejected


@torch.no_grad()
def score(model: nn.Module, groups: Sequence[Group], max_tokens: int, name: str) -> np.ndarray:
    """`response_logps` of many groups, batch by batch: float64, (responses,), in the order of the groups."""
    return np.concatenate(
        [response_logps(model, packed).double().cpu().numpy() for packed in packs(model, groups, max_tokens, name)]
    )


def packs(model: nn.Module, groups: Sequence[Group], max_tokens: int, name: str) -> Iterator[Pack]:
    """The groups in packs of at most `max_tokens` tokens, on the model's device, under a progress bar called `name`."""
    device = next(model.parameters()).device
    with progress(len(groups), "row", name) as bar:
        for rows in batches(groups, max_tokens):
            yield pack([groups[i] for i in rows]).to(device)
            bar.update(len(rows))
