"""From hidden states to log-probabilities, a part of the tokens at a time: the logits of a batch never exist at once.

A `head` is the output layer of a causal language model, vocabulary x d; None where the states are logits already.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prefdag.text.scoring.layers import product

# At most so many at a time: 32 MB, which malloc reuses, and tokens enough that reading the head costs little.
LOGITS = 2**23


def token_logps(states: Tensor, head: nn.Linear | None, targets: Tensor) -> Tensor:
    """log pi(target | context), from the state that predicts it: (S, d) and int64 (S,) -> (S,), float32, in nats.

    With gradient for the states and, where it is trained, for the head.
    """
    if head is not None and not (head.weight.requires_grad and torch.is_grad_enabled()):
        return _FrozenHead.apply(states, head.weight, head.bias, targets)

    def of_part(states: Tensor, targets: Tensor) -> Tensor:
        logits = _logits(states, head)
        logits = logits - logits.detach().amax(-1, keepdim=True)
        return _of_targets(logits, targets) - logits.exp().sum(-1).log()

    # Logits are computed once more in the backward pass.
    parts = _parts(states, _vocabulary(states, head))
    return torch.cat([checkpoint(of_part, states[part], targets[part], use_reentrant=False) for part in parts])


@torch.no_grad()
def log_collisions(states: Tensor, head: nn.Linear | None) -> Tensor:
    """log sum_v p(v)^2, over the vocabulary: (S, d) -> (S,), float32, in nats."""
    parts = _parts(states, _vocabulary(states, head))
    return torch.cat([(2 * _logits(states[part], head).log_softmax(-1)).logsumexp(-1) for part in parts])


class Compared(NamedTuple):
    """What two models say of the same tokens: (S,) each, float32, in nats."""

    policy: Tensor  # log pi(target | context)
    reference: Tensor  # log pi_ref(target | context)
    kl: Tensor  # KL(policy || reference) of the next token, over the whole vocabulary


@torch.no_grad()
def compare(
    policy: Tensor, policy_head: nn.Linear | None, reference: Tensor, reference_head: nn.Linear | None, targets: Tensor
) -> Compared:
    """Both models' log-probabilities of the targets and the KL between them, from states (S, d) each and int64 (S,).

    Each head is computed once.
    """
    found = []
    for part in _parts(policy, _vocabulary(policy, policy_head)):
        p, q = (
            _logits(states[part], head).log_softmax(-1)
            for states, head in ((policy, policy_head), (reference, reference_head))
        )
        found.append((_of_targets(p, targets[part]), _of_targets(q, targets[part]), (p.exp() * (p - q)).sum(-1)))
    return Compared(*map(torch.cat, zip(*found, strict=True)))


def _parts(states: Tensor, vocabulary: int) -> Iterator[slice]:
    size = max(1, LOGITS // vocabulary)
    return (slice(start, start + size) for start in range(0, max(1, len(states)), size))


def _vocabulary(states: Tensor, head: nn.Linear | None) -> int:
    return states.shape[-1] if head is None else len(head.weight)


def _logits(states: Tensor, head: nn.Linear | None) -> Tensor:
    return (states if head is None else head(states)).float()


def _of_targets(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.gather(1, targets[:, None])[:, 0]


class _FrozenHead(torch.autograd.Function):
    """`token_logps` under a head that is not trained.

    d log p(y) / d state = W_y - sum_v p(v) W_v, which is taken in the forward pass, where the logits are at hand: the
    backward pass has but to multiply it by a number for each token, and nothing is computed twice.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        found, directions = [], []
        for part in _parts(states, len(weight)):
            logits = product(states[part], weight, bias).float()
            logits -= logits.amax(-1, keepdim=True)
            of_target = _of_targets(logits, targets[part])
            p = logits.exp_()  # times total
            total = p.sum(-1)
            found.append(of_target - total.log())
            if ctx.needs_input_grad[0]:
                mean = product(p.to(weight.dtype), weight.t()) / total[:, None]
                directions.append(weight[targets[part]] - mean)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.cat(directions).to(states.dtype))
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (directions,) = ctx.saved_tensors
        return directions * gradient[:, None].to(directions.dtype), None, None, None
