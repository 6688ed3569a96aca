"""Log-probabilities of responses under a causal language model: the same code for training and evaluation."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from prefdag.distributed.sharing import shared_out
from prefdag.text.scoring.packing import Group, Pack, TokenIds, batches, pack
from prefdag.text.scoring.states import head, response_states, response_token_logps
from prefdag.text.scoring.vocabulary import log_collisions, token_logps
from prefdag.train.outputs import map_tensors


def response_logps(model: nn.Module, packed: Pack) -> Tensor:
    """log pi(response | prompt), summed over a response's tokens: (responses,), float32, in nats."""
    sums = torch.zeros(packed.n_responses, device=packed.targets.device)
    return sums.index_add(0, packed.owners, response_token_logps(model, packed))


class Pair(NamedTuple):
    """A prompt with a chosen and a rejected response, as token ids. Unpaired data has one of the two.

    `mismatched` is a response to another prompt: its log-ratio estimates KL(policy || reference) (KTO, arXiv:2402.01306).
    """

    prompt: TokenIds
    chosen: TokenIds | None
    rejected: TokenIds | None
    mismatched: TokenIds | None = None

    @property
    def group(self) -> Group:
        """The prompt with its responses, in the order of the fields; absent ones are left out."""
        return Group(self.prompt, tuple(response for response in self[1:] if response is not None))


class ResponseLogps(NamedTuple):
    """One response per pair under one model: (pairs,), float32, in nats. 0 where the pair has no such response."""

    logps: Tensor  # log pi(response | prompt), summed over tokens
    shared_logps: Tensor  # the same over the first min(|chosen|, |rejected|) tokens
    confidence: Tensor | None = None  # mean over tokens of log pi(y_t) - log sum_v pi(v)^2, without gradient


class PairLogps(NamedTuple):
    """Pairs under one model."""

    chosen: ResponseLogps
    rejected: ResponseLogps
    mismatched: ResponseLogps | None = None  # None: no pair has such a response


def pair_logps(model: nn.Module, pairs: Sequence[Pair], *, confidence: bool = False) -> PairLogps:
    """Log-probabilities of pairs under a model, in one forward pass. `confidence` costs one more softmax."""
    packed = pack([pair.group for pair in pairs]).to(next(model.parameters()).device)
    states, layer = response_states(model, packed), head(model)
    collisions = log_collisions(states, layer) if confidence else None
    return sum_over_tokens(pairs, packed, token_logps(states, layer, packed.targets), collisions)


def sum_over_tokens(pairs: Sequence[Pair], packed: Pack, logps: Tensor, collisions: Tensor | None = None) -> PairLogps:
    """`PairLogps` from log-probabilities of the pack's tokens, (S,), and for the confidence their `log_collisions`, (S,)."""
    device = packed.targets.device
    present = [[side for side in PairLogps._fields if getattr(pair, side) is not None] for pair in pairs]
    lengths = [{side: len(getattr(pair, side)) for side in sides} for pair, sides in zip(pairs, present, strict=True)]
    # The length that chosen and rejected share, repeated for each response of the pair.
    shared = [min(n[s] for s in n if s != "mismatched") for n in lengths for _ in n]
    tokens = torch.tensor([n for row in lengths for n in row.values()], device=device)
    place = torch.arange(len(packed.targets), device=device) - (tokens.cumsum(0) - tokens)[packed.owners]

    per_token = [logps, logps.where(place < torch.tensor(shared, device=device)[packed.owners], 0.0)]
    if collisions is not None:  # WPO, arXiv:2406.11827, eq. 2
        per_token.append((logps.detach() - collisions) / tokens[packed.owners])
    zeros = torch.zeros(len(tokens), device=device)
    per_response = [zeros.index_add(0, packed.owners, values) for values in per_token]

    numbers = iter(range(len(tokens)))
    number = [{side: next(numbers) for side in sides} for sides in present]  # of each response in the pack

    def responses(side: str) -> ResponseLogps:
        at = torch.tensor([row.get(side, -1) for row in number], device=device)
        return ResponseLogps(*(values[at].where(at >= 0, 0.0) for values in per_response))

    has_mismatched = any("mismatched" in sides for sides in present)
    return PairLogps(responses("chosen"), responses("rejected"), responses("mismatched") if has_mismatched else None)


@torch.no_grad()
def all_pair_logps(
    model: nn.Module, pairs: Sequence[Pair], max_tokens: int, name: str, *, done: int = 0, total: int | None = None
) -> PairLogps:
    """`pair_logps` of many pairs, in batches of at most `max_tokens` tokens, without gradient, on the CPU.

    Processes share the batches (`shared_out`), and each gets all results.

    Args:
        name: of the progress bar.
        done: how many pairs precede these in the progress bar.
        total: the number of pairs of the whole progress bar; None: these.
    """

    def compute(rows: Sequence[int]) -> PairLogps:
        return map_tensors(Tensor.cpu, pair_logps(model, [pairs[i] for i in rows]))

    each_batch = list(batches((pair.group for pair in pairs), max_tokens))
    parts = shared_out(each_batch, compute, "row", name, done=done, total=total)
    return map_tensors(lambda *each: torch.cat(each), *parts)


@torch.no_grad()
def group_logps(model: nn.Module, groups: Sequence[Group], max_tokens: int, name: str) -> np.ndarray:
    """`response_logps` of many groups, in batches that processes share: float64, (responses,), in the order of the groups."""
    device = next(model.parameters()).device

    def compute(rows: Sequence[int]) -> np.ndarray:
        return response_logps(model, pack([groups[i] for i in rows]).to(device)).double().cpu().numpy()

    return np.concatenate(shared_out(list(batches(groups, max_tokens)), compute, "row", name))
