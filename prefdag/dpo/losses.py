"""Preference losses: from the log-probabilities of a pair under policy and reference to one loss a pair.

Notation, all of shape (pairs,) and in nats: a response's logratio is log pi(y|x) - log pi_ref(y|x); its implicit reward is
beta times that (DPO, arXiv:2305.18290, section 4); h is the chosen logratio minus the rejected one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from prefdag.config import Dtype, LossName
from prefdag.errors import NumericError, ParamsError


class PairLoss(Protocol):
    """A loss of h, (pairs,) -> (pairs,)."""

    def __call__(self, h: Tensor, beta: float, label_smoothing: float) -> Tensor: ...


def sigmoid(h: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """DPO, arXiv:2305.18290, eq. 7: -log sigmoid(beta h).

    With label smoothing e, conservative DPO (cDPO): -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h).
    At h = 0 the loss is ln 2, whatever beta and e.
    """
    return -(1 - label_smoothing) * F.logsigmoid(beta * h) - label_smoothing * F.logsigmoid(-beta * h)


def hinge(h: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """SLiC's hinge on the DPO reward, as in RSO (arXiv:2309.06657, section 3): max(0, 1 - beta h)."""
    return torch.relu(1 - beta * h)


def ipo(h: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """IPO, arXiv:2310.12036, eq. 17: (h - 1 / (2 beta))^2, the paper's tau being beta."""
    return (h - 1 / (2 * beta)) ** 2


# How far, in nats of log-ratio, two computations of the same log-probability may lie apart (see `Preference.check_start`).
START_TOLERANCE: Mapping[Dtype, float] = {"float32": 2e-3, "bfloat16": 2.0}

LOSSES: Mapping[LossName, PairLoss] = {"sigmoid": sigmoid, "hinge": hinge, "ipo": ipo}


@dataclass(frozen=True)
class Preference:
    """A loss with its parameters. Raises `ParamsError` for a parameter that the loss does not use."""

    loss: LossName
    beta: float
    label_smoothing: float

    def __post_init__(self) -> None:
        if self.label_smoothing and self.loss != "sigmoid":
            raise ParamsError(f"params.yaml: label_smoothing: loss '{self.loss}' does not use it; set it to 0.0")

    def __call__(self, h: Tensor) -> Tensor:
        """(pairs,) -> (pairs,)."""
        return LOSSES[self.loss](h, self.beta, self.label_smoothing)

    def outcome(
        self, chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses and metrics of some pairs, from summed log-probabilities, all of shape (pairs,), float32 or wider."""
        chosen_logratios, rejected_logratios = chosen - ref_chosen, rejected - ref_rejected
        h = chosen_logratios - rejected_logratios
        with torch.no_grad():
            metrics = {
                "rewards/chosen": self.beta * chosen_logratios,
                "rewards/rejected": self.beta * rejected_logratios,
                "rewards/margin": self.beta * h,
                # A tie is half right, so that a policy equal to its reference scores one half.
                "rewards/accuracy": (h > 0).float() + 0.5 * (h == 0).float(),
                "logps/chosen": chosen.detach(),
                "logps/rejected": rejected.detach(),
            }
        return self(h), metrics

    def check_start(self, tolerance: float) -> Callable[[Mapping[str, float]], None]:
        """A check of the first step: there the policy is its reference, so rewards are zero and the sigmoid loss is ln 2.

        `tolerance` is in nats of log-ratio. What it catches: stale reference log-probabilities, dropout left on,
        batch statistics in the policy, adapters that do not start at zero.
        """
        nearby = _, expected, _ = self(torch.tensor([-2 * tolerance, 0, 2 * tolerance], dtype=torch.float64)).tolist()

        def check(metrics: Mapping[str, float]) -> None:
            off = max(abs(metrics["rewards/chosen"]), abs(metrics["rewards/rejected"])) / self.beta
            inside = min(nearby) - 1e-6 <= metrics["loss"] <= max(nearby) + 1e-6
            if not (off <= tolerance and inside):
                raise NumericError(
                    f"step 0: the policy is not its reference: loss {metrics['loss']:.6f}, expected {expected:.6f}; "
                    f"log-ratios off by {off:.2g} nats (tolerance {tolerance:g}); run ref_logps again, with the precision "
                    "that the policy trains in"
                )

        return check
