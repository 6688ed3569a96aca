"""Preference losses: from the log-probabilities of a pair under policy and reference to one loss a pair.

Notation, all of shape (pairs,) and in nats: a response's logratio is log pi(y|x) - log pi_ref(y|x); its implicit reward is
beta times that (DPO, arXiv:2305.18290, section 4); h is the chosen logratio minus the rejected one.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from prefdag.config import Dtype, LossName
from prefdag.errors import NumericError, ParamsError


class PairLoss(Protocol):
    """A loss of the two logratios of a pair, (pairs,) each -> (pairs,)."""

    def __call__(self, chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float) -> Tensor: ...


def sigmoid(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """DPO, arXiv:2305.18290, eq. 7: -log sigmoid(beta h).

    With label smoothing e, conservative DPO (cDPO): -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h).
    At h = 0 the loss is ln 2, whatever beta and e.
    """
    margin = beta * (chosen - rejected)
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def robust(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """Robust DPO, arXiv:2403.00409: unbiased where a share e of the labels is flipped. It has no lower bound.

    (-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)) / (1 - 2 e); e is `label_smoothing`, below one half.
    """
    margin = beta * (chosen - rejected)
    return (-(1 - label_smoothing) * F.logsigmoid(margin) + label_smoothing * F.logsigmoid(-margin)) / (
        1 - 2 * label_smoothing
    )


def exo(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """EXO for pairs, arXiv:2402.00856, eq. 16: KL(policy's preference || labels smoothed by e), the reverse of DPO's.

    s log(s / (1 - e)) + (1 - s) log((1 - s) / e) with s = sigmoid(beta h); e is `label_smoothing`, above 0.
    """
    margin = beta * (chosen - rejected)
    return margin.sigmoid() * (F.logsigmoid(margin) - math.log(1 - label_smoothing)) + (-margin).sigmoid() * (
        F.logsigmoid(-margin) - math.log(label_smoothing)
    )


def hinge(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """SLiC's hinge on the DPO reward, as in RSO (arXiv:2309.06657, section 3): max(0, 1 - beta h)."""
    return torch.relu(1 - beta * (chosen - rejected))


def ipo(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """IPO, arXiv:2310.12036, eq. 17: (h - 1 / (2 beta))^2, the paper's tau being beta."""
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def sppo(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """SPPO, arXiv:2405.00675, eq. 4.7, with probability 1 for the chosen response and 0 for the rejected one.

    (chosen - 1 / (2 beta))^2 + (rejected + 1 / (2 beta))^2, of the logratios.
    """
    return (chosen - 1 / (2 * beta)) ** 2 + (rejected + 1 / (2 * beta)) ** 2


def discopop(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """DiscoPOP, arXiv:2406.08414, eq. 5: found by a search with a language model; not convex.

    With z = beta h and m = sigmoid(z / 0.05): -(1 - m) log sigmoid(z) + m exp(-z), logistic to the left, exponential to the
    right. Where m vanishes in float32, exp(-z) may be infinite: there the product is left out.
    """
    margin = beta * (chosen - rejected)
    modulation = (margin / 0.05).sigmoid()
    return -(1 - modulation) * F.logsigmoid(margin) + modulation * (-margin.clamp(min=-80)).exp()


def nca(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """NCA for pairs, arXiv:2402.05369, of the rewards r: it also keeps the chosen response likely.

    -log sigmoid(r_w) - log sigmoid(-r_w) / 2 - log sigmoid(-r_l) / 2
    """
    r_w, r_l = beta * chosen, beta * rejected
    return -F.logsigmoid(r_w) - 0.5 * F.logsigmoid(-r_w) - 0.5 * F.logsigmoid(-r_l)


def apo_zero(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """APO-zero, arXiv:2408.06266, eq. 7: 1 - sigmoid(r_w) + sigmoid(r_l). For chosen responses better than the policy's."""
    return (-beta * chosen).sigmoid() + (beta * rejected).sigmoid()


def apo_down(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """APO-down, arXiv:2408.06266, eq. 8: sigmoid(r_w) + 1 - sigmoid(r_w - r_l). For responses worse than the policy's."""
    return (beta * chosen).sigmoid() + (-beta * (chosen - rejected)).sigmoid()


# How far, in nats of log-ratio, two computations of the same log-probability may lie apart (see `Preference.check_start`).
START_TOLERANCE: Mapping[Dtype, float] = {"float32": 2e-3, "bfloat16": 2.0}

LOSSES: Mapping[LossName, PairLoss] = {
    "sigmoid": sigmoid,
    "robust": robust,
    "exo": exo,
    "hinge": hinge,
    "ipo": ipo,
    "sppo": sppo,
    "discopop": discopop,
    "nca": nca,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
}
SMOOTHED: Collection[LossName] = ("sigmoid", "robust", "exo")  # the losses that use label smoothing


@dataclass(frozen=True)
class Preference:
    """A loss with its parameters. Raises `ParamsError` for a parameter that the loss does not use."""

    loss: LossName
    beta: float
    label_smoothing: float

    def __post_init__(self) -> None:
        if self.label_smoothing and self.loss not in SMOOTHED:
            raise ParamsError(f"params.yaml: label_smoothing: loss '{self.loss}' does not use it; set it to 0.0")
        if self.loss == "exo" and not self.label_smoothing:
            raise ParamsError("params.yaml: label_smoothing: loss 'exo' is infinite without it; set it to 0.001, say")

    def __call__(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """The loss of logratios, (pairs,) each -> (pairs,)."""
        return LOSSES[self.loss](chosen, rejected, self.beta, self.label_smoothing)

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
        return self(chosen_logratios, rejected_logratios), metrics

    def check_start(self, tolerance: float) -> Callable[[Mapping[str, float]], None]:
        """A check of the first step: there the policy is its reference, so rewards are zero and the sigmoid loss is ln 2.

        `tolerance` is in nats of log-ratio. What it catches: stale reference log-probabilities, dropout left on,
        batch statistics in the policy, adapters that do not start at zero.
        """
        # The losses of all pairs that lie within the tolerance, on a grid whose middle is the reference.
        steps = torch.linspace(-tolerance, tolerance, 5, dtype=torch.float64)
        nearby = self(*torch.cartesian_prod(steps, steps).unbind(1)).tolist()
        expected = nearby[len(nearby) // 2]

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
