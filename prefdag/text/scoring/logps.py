"""Log-probabilities of responses under a causal language model: the one scoring path of training and evaluation."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from prefdag.runtime.progress import progress
from prefdag.text.scoring.packing import Group, Pack, batches, pack
from prefdag.text.scoring.states import head, response_states, response_token_logps
from prefdag.text.scoring.vocabulary import log_collisions, token_logps


def response_logps(model: nn.Module, packed: Pack) -> Tensor:
    """log pi(response | prompt), summed over a response's tokens: (responses,), float32, in nats."""
    sums = torch.zeros(packed.n_responses, device=packed.targets.device)
    return sums.index_add(0, packed.owners, response_token_logps(model, packed))


SIDES = ("chosen", "rejected", "mismatched")


class Pair(NamedTuple):
    """A prompt with a chosen and a rejected response, as token ids. Unpaired data has one of the two.

    `mismatched` is a response to another prompt: its log-ratio estimates KL(policy || reference) (KTO, arXiv:2402.01306).
    """

    prompt: Sequence[int]
    chosen: Sequence[int] | None
    rejected: Sequence[int] | None
    mismatched: Sequence[int] | None = None

    @property
    def group(self) -> Group:
        """The prompt with the responses that there are, in the order of the fields."""
        return Group(self.prompt, tuple(response for response in self[1:] if response is not None))


def score_pairs(model: nn.Module, pairs: Sequence[Pair], *, confidence: bool = False) -> dict[str, Tensor]:
    """What a model says of some pairs, under the names that `preference.Scores` has for the policy: (pairs,) each, float32.

    Of an absent response the log-probability is 0, and its tokens are one. `confidence` costs a softmax more.
    """
    packed = pack([pair.group for pair in pairs]).to(next(model.parameters()).device)
    states, layer = response_states(model, packed), head(model)
    collisions = log_collisions(states, layer) if confidence else None
    return pair_scores(pairs, packed, token_logps(states, layer, packed.targets), collisions)


def pair_scores(
    pairs: Sequence[Pair], packed: Pack, logps: Tensor, collisions: Tensor | None = None
) -> dict[str, Tensor]:
    """`score_pairs` from the log-probabilities of the pack's tokens, (S,), and for confidence their `log_collisions`, (S,)."""
    device = packed.targets.device
    present = [[side for side in SIDES if getattr(pair, side) is not None] for pair in pairs]
    lengths = [{side: len(getattr(pair, side)) for side in names} for pair, names in zip(pairs, present, strict=True)]
    # The length that a pair's two responses share, once for each response of its group.
    shared = [min(n[s] for s in SIDES if s in n and s != "mismatched") for n in lengths for _ in n]
    tokens = torch.tensor([n for row in lengths for n in row.values()], device=device)
    place = torch.arange(len(packed.targets), device=device) - (tokens.cumsum(0) - tokens)[packed.owners]

    per_token = {"": logps, "_shared": logps.where(place < torch.tensor(shared, device=device)[packed.owners], 0.0)}
    if collisions is not None:  # WPO, arXiv:2406.11827, eq. 2
        per_token["_confidence"] = (logps.detach() - collisions) / tokens[packed.owners]
    zeros = torch.zeros(len(tokens), device=device)
    responses = {name: zeros.index_add(0, packed.owners, values) for name, values in per_token.items()}
    responses["_tokens"] = tokens.to(logps)

    places = iter(range(len(tokens)))
    number = [{side: next(places) for side in names} for names in present]
    found: dict[str, Tensor] = {}
    for side in SIDES if any("mismatched" in names for names in present) else SIDES[:2]:
        at = torch.tensor([row.get(side, -1) for row in number], device=device)
        for name, values in responses.items():
            found[side + name] = values[at].where(at >= 0, 1.0 if name == "_tokens" else 0.0)
    return found


@torch.no_grad()
def score_all_pairs(
    model: nn.Module, pairs: Sequence[Pair], max_tokens: int, name: str, *, done: int = 0, total: int | None = None
) -> dict[str, Tensor]:
    """`score_pairs` of many pairs, batch by batch, without gradient, on the CPU; under a progress bar called `name`.

    Args:
        done: of a part of the pairs, how many came before it.
        total: and how many there are in all; None: these.
    """
    parts = []
    with progress(total or len(pairs), "row", name, initial=done) as bar:
        for rows in batches([pair.group for pair in pairs], max_tokens):
            parts.append(score_pairs(model, [pairs[i] for i in rows]))
            bar.update(len(rows))
    return {key: torch.cat([part[key].cpu() for part in parts]) for key in parts[0]}


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
