"""From hidden states to log-probabilities, a few tokens at a time, so that the logits of a batch never exist all at once.

A `head` is the output layer of a causal language model, vocabulary x d. It is None if the states already are logits.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prefdag.text.scoring.layers import linear

# Logits computed at once. In float32 they take 32 MB, a block that malloc reuses, and still cover enough tokens to make
# reading the head cheap.
MAX_LOGITS = 2**23


def token_logps(states: Tensor, head: nn.Linear | None, targets: Tensor) -> Tensor:
    """log pi(target | context) of each target, from the states that predict them.

    Differentiable with respect to the states and, if the head is trained, the head.

    Args:
        states: (S, d).
        targets: int64 (S,).

    Returns:
        (S,), float32, in nats.
    """
    if head is not None and not (head.weight.requires_grad and torch.is_grad_enabled()):
        return _FrozenHead.apply(states, head.weight, head.bias, targets)

    def part_logps(states: Tensor, targets: Tensor) -> Tensor:
        logits = _logits(states, head)
        logits = logits - logits.detach().amax(-1, keepdim=True)
        return _at_targets(logits, targets) - logits.exp().sum(-1).log()

    # The backward pass computes the logits again.
    parts = _parts(states, _vocabulary(states, head))
    return torch.cat([checkpoint(part_logps, states[part], targets[part], use_reentrant=False) for part in parts])


@torch.no_grad()
def log_collisions(states: Tensor, head: nn.Linear | None) -> Tensor:
    """log sum_v p(v)^2 over the vocabulary, the log collision probability: (S, d) -> (S,), float32, in nats."""
    parts = _parts(states, _vocabulary(states, head))
    return torch.cat([(2 * _logits(states[part], head).log_softmax(-1)).logsumexp(-1) for part in parts])


class LogpsAndKl(NamedTuple):
    """Log-probabilities of the same tokens under two models, and their KL divergence: (S,) each, float32, in nats."""

    policy: Tensor  # log pi(target | context)
    reference: Tensor  # log pi_ref(target | context)
    kl: Tensor  # KL(policy || reference) of the next-token distributions, exact over the vocabulary


@torch.no_grad()
def logps_and_kl(
    policy: Tensor, policy_head: nn.Linear | None, reference: Tensor, reference_head: nn.Linear | None, targets: Tensor
) -> LogpsAndKl:
    """Log-probabilities of the targets under both models and the KL between them. Each head is applied once.

    Args:
        policy, reference: states, (S, d) each.
        targets: int64 (S,).
    """
    results = []
    for part in _parts(policy, _vocabulary(policy, policy_head)):
        p, q = (
            _logits(states[part], head).log_softmax(-1)
            for states, head in ((policy, policy_head), (reference, reference_head))
        )
        results.append((_at_targets(p, targets[part]), _at_targets(q, targets[part]), (p.exp() * (p - q)).sum(-1)))
    return LogpsAndKl(*map(torch.cat, zip(*results, strict=True)))


def _parts(states: Tensor, vocabulary: int) -> Iterator[slice]:
    size = max(1, MAX_LOGITS // vocabulary)
    return (slice(start, start + size) for start in range(0, max(1, len(states)), size))


def _vocabulary(states: Tensor, head: nn.Linear | None) -> int:
    return states.shape[-1] if head is None else len(head.weight)


def _logits(states: Tensor, head: nn.Linear | None) -> Tensor:
    return (states if head is None else head(states)).float()


def _at_targets(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.gather(1, targets[:, None])[:, 0]


class _FrozenHead(torch.autograd.Function):
    """`token_logps` with a head that is not trained.

    d log p(y) / d state = W_y - sum_v p(v) W_v. The forward pass computes it, since it has the logits. The backward pass only
    scales it for each token, and nothing is computed twice.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        logps, directions = [], []
        for part in _parts(states, len(weight)):
            logits = linear(states[part], weight, bias).float()
            logits -= logits.amax(-1, keepdim=True)
            target_logits = _at_targets(logits, targets[part])
            p = logits.exp_()  # not normalised: p / total are the probabilities
            total = p.sum(-1)
            logps.append(target_logits - total.log())
            if ctx.needs_input_grad[0]:
                mean = linear(p.to(weight.dtype), weight.t()) / total[:, None]
                directions.append(weight[targets[part]] - mean)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.cat(directions).to(states.dtype))
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (directions,) = ctx.saved_tensors
        return directions * gradient[:, None].to(directions.dtype), None, None, None
