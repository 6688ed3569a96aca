"""Preference losses: pure functions of a pair's chosen and rejected response; one loss per pair.

Notation, all of shape (pairs,) and in nats. `chosen` and `rejected` are the loss's inputs. For most losses an input is a
response's log-ratio log pi(y|x) - log pi_ref(y|x); `Loss.input` names the others. The implicit reward r is beta times the
input (DPO, arXiv:2305.18290, section 4); h is chosen minus rejected, z = beta h, s the sigmoid. `preference.py` computes the
inputs and applies weights, soft labels and constraints. A loss's keyword arguments are its own parameters, named as in
`loss_options` of params.yaml, or are among `EXTRAS`.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

# Losses of the margin


def sigmoid(chosen: Tensor, rejected: Tensor, beta: float, *, label_smoothing: float = 0.0) -> Tensor:
    """-(1 - e) log s(z) - e log s(-z)

    DPO, arXiv:2305.18290, eq. 7. With label smoothing e > 0: conservative DPO (cDPO). At h = 0 it is ln 2 for any beta
    and e.
    """
    z = beta * (chosen - rejected)
    return -(1 - label_smoothing) * F.logsigmoid(z) - label_smoothing * F.logsigmoid(-z)


def robust(chosen: Tensor, rejected: Tensor, beta: float, *, label_smoothing: float = 0.0) -> Tensor:
    """(-(1 - e) log s(z) + e log s(-z)) / (1 - 2 e)

    Robust DPO, arXiv:2403.00409: unbiased if a share e of the labels is flipped. It has no lower bound.
    """
    z = beta * (chosen - rejected)
    return (-(1 - label_smoothing) * F.logsigmoid(z) + label_smoothing * F.logsigmoid(-z)) / (1 - 2 * label_smoothing)


def exo(chosen: Tensor, rejected: Tensor, beta: float, *, label_smoothing: float = 1e-3) -> Tensor:
    """s(z) log(s(z) / (1 - e)) + s(-z) log(s(-z) / e)

    EXO for pairs, arXiv:2402.00856, eq. 16: KL(policy's preference || labels smoothed by e), the reverse of DPO's KL.
    Infinite at e = 0.
    """
    z = beta * (chosen - rejected)
    return z.sigmoid() * (F.logsigmoid(z) - math.log(1 - label_smoothing)) + (-z).sigmoid() * (
        F.logsigmoid(-z) - math.log(label_smoothing)
    )


def hinge(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """max(0, 1 - z)

    SLiC's hinge on the DPO reward, as in RSO, arXiv:2309.06657, section 3.
    """
    return torch.relu(1 - beta * (chosen - rejected))


def ipo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """(h - 1 / (2 beta))^2

    IPO, arXiv:2310.12036, eq. 17; beta is the paper's tau. With `reduction: mean` the log-ratios are means over tokens, as in
    the authors' experiments.
    """
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def discopop(chosen: Tensor, rejected: Tensor, beta: float, *, discopop_tau: float = 0.05) -> Tensor:
    """-(1 - m) log s(z) + m exp(-z), m = s(z / tau)

    DiscoPOP, arXiv:2406.08414, eq. 5: discovered by a language model; not convex. Logistic on the left, exponential on the
    right. The second product is computed in logarithms, because exp(-z) alone can overflow.
    """
    z = beta * (chosen - rejected)
    left = (-z / discopop_tau).sigmoid()
    return -left * F.logsigmoid(z) + (F.logsigmoid(z / discopop_tau) - z).clamp(max=80).exp()


# Losses of the two rewards


def sppo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """(chosen - 1 / (2 beta))^2 + (rejected + 1 / (2 beta))^2, of the log-ratios

    SPPO, arXiv:2405.00675, eq. 4.7, with probability 1 for the chosen response and 0 for the rejected one.
    """
    return (chosen - 1 / (2 * beta)) ** 2 + (rejected + 1 / (2 * beta)) ** 2


def nca(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """-log s(r_w) - log s(-r_w) / 2 - log s(-r_l) / 2

    NCA for pairs, arXiv:2402.05369. It also keeps the chosen response likely.
    """
    r_w, r_l = beta * chosen, beta * rejected
    return -F.logsigmoid(r_w) - 0.5 * F.logsigmoid(-r_w) - 0.5 * F.logsigmoid(-r_l)


def apo_down(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """s(r_w) + 1 - s(r_w - r_l)

    APO-down, arXiv:2408.06266, eq. 8. For chosen responses worse than the policy's own.
    """
    return (beta * chosen).sigmoid() + (-beta * (chosen - rejected)).sigmoid()


# Losses of single responses: they also take unpaired data, and return the losses of chosen and rejected separately


def apo_zero(chosen: Tensor, rejected: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """1 - s(r_w) + s(r_l)

    APO-zero, arXiv:2408.06266, eq. 7. For chosen responses better than the policy's own.
    """
    return (-beta * chosen).sigmoid(), (beta * rejected).sigmoid()


def kto(
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    *,
    kl: Tensor,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """mean of d (1 - s(r_w - beta z0)) and u (1 - s(beta z0 - r_l)), z0 = max(0, mean of kl)

    KTO, arXiv:2402.01306, section 4.1; d and u are the weights. z0 estimates KL(policy || reference) over the rows of an
    optimiser step and passes no gradient; `kl`, (pairs,), holds each row's estimate (see `PairBatch`).
    """
    z0 = kl.detach().mean().clamp(min=0)
    return desirable_weight * (-beta * (chosen - z0)).sigmoid(), undesirable_weight * (
        -beta * (z0 - rejected)
    ).sigmoid()


def bco(chosen: Tensor, rejected: Tensor, beta: float, *, present: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """-log s(r_w - d) - log s(-(r_l - d)), d = (mean of r_w + mean of r_l) / 2

    BCO, arXiv:2404.04656. The reward shift d is a mean over the rows of an optimiser step, so that a step depends on its own
    rows alone; the paper keeps a moving average. d passes no gradient. If a step has no chosen or no rejected responses, d is
    the other mean. `present`: 1 where a row has a chosen response, and where it has a rejected one, (pairs,) each.
    """
    r_w, r_l = beta * chosen, beta * rejected
    sides = [(r.detach() * has).sum() / has.sum() for r, has in zip((r_w, r_l), present, strict=True) if has.any()]
    shift = torch.stack(sides).mean()
    return -F.logsigmoid(r_w - shift), -F.logsigmoid(shift - r_l)


# Losses of sorted batches


def aot(chosen: Tensor, rejected: Tensor, beta: float, *, ref_margin: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """DPO's of z_i = beta (sorted policy margins - sorted reference margins)_i

    AOT for pairs, arXiv:2406.05882: over the rows of an optimiser step, the distribution of the policy's margins
    log pi(y_w|x) - log pi(y_l|x) shall dominate the reference's. Losses are in sorted order and belong to no single row.
    """
    h = (chosen - rejected + ref_margin).sort().values - ref_margin.sort().values
    return sigmoid(h, torch.zeros_like(h), beta, label_smoothing=label_smoothing)


def aot_unpaired(chosen: Tensor, rejected: Tensor, beta: float, *, label_smoothing: float = 0.0) -> Tensor:
    """DPO's of z_i = beta (sorted chosen log-ratios - sorted rejected log-ratios)_i

    AOT for unpaired rows, arXiv:2406.05882, over the rows of an optimiser step.
    """
    return sigmoid(chosen.sort().values, rejected.sort().values, beta, label_smoothing=label_smoothing)


# Losses without a reference


def cpo(
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    *,
    chosen_mean_logps: Tensor,
    label_smoothing: float = 0.0,
    sft_weight: float = 1.0,
) -> Tensor:
    """DPO's of the log-probabilities, - w log pi(y_w|x) / |y_w|

    CPO, arXiv:2401.08417, section 3. The cross-entropy is a mean over the chosen response's tokens, as in the authors'
    experiments; w is its weight.
    """
    return sigmoid(chosen, rejected, beta, label_smoothing=label_smoothing) - sft_weight * chosen_mean_logps


def simpo(
    chosen: Tensor, rejected: Tensor, beta: float, *, simpo_gamma: float = 0.5, label_smoothing: float = 0.0
) -> Tensor:
    """DPO's of z = beta (log pi(y_w|x) / |y_w| - log pi(y_l|x) / |y_l|) - gamma

    SimPO, arXiv:2405.14734, eq. 6. Its beta is larger than DPO's: 2 to 2.5 in the paper.
    """
    z = beta * (chosen - rejected) - simpo_gamma
    return sigmoid(z, torch.zeros_like(z), 1.0, label_smoothing=label_smoothing)


def orpo(
    chosen: Tensor, rejected: Tensor, beta: float, *, chosen_mean_logps: Tensor, sft_weight: float = 1.0
) -> Tensor:
    """-beta log s(log-odds of y_w - log-odds of y_l) - w log pi(y_w|x) / |y_w|

    ORPO, arXiv:2403.07691, eq. 6 and 7; beta is the paper's lambda. The odds are those of the average token,
    p = exp(log pi(y|x) / |y|).
    """
    return -beta * F.logsigmoid(chosen - rejected) - sft_weight * chosen_mean_logps


def sft(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """-log pi(y_w|x) / |y_w|

    RPO's term, arXiv:2404.19733v3, eq. 1: cross-entropy on the chosen response, a mean over its tokens; its weight is the
    paper's alpha. It learns no preference, so it must be summed with a loss that does.
    """
    return -chosen


LossInput = Literal["logratios", "logps", "mean_logps", "log_odds"]

# Keyword arguments of losses that are not parameters but are computed from the rows.
EXTRAS = ("kl", "present", "ref_margin", "chosen_mean_logps")


@dataclass(frozen=True)
class Loss:
    """A loss function and its properties."""

    function: Callable[..., Any]
    input: LossInput = "logratios"
    of_margin: bool = False  # depends on chosen minus rejected only
    jointly: bool = False  # depends on all rows of an optimiser step together
    sorts: bool = False  # sorts the rows: its values belong to no single row
    unpaired: bool = False  # returns the losses of chosen and rejected, and takes rows with one of the two
    mean: bool = False  # if unpaired: the mean over a row's responses, not their sum

    @property
    def keywords(self) -> dict[str, Any]:
        """The loss's keyword arguments and their defaults."""
        return {
            name: parameter.default
            for name, parameter in inspect.signature(self.function).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }


LOSSES: Mapping[str, Loss] = {
    "sigmoid": Loss(sigmoid, of_margin=True),
    "robust": Loss(robust, of_margin=True),
    "exo": Loss(exo, of_margin=True),
    "hinge": Loss(hinge, of_margin=True),
    "ipo": Loss(ipo, of_margin=True),
    "discopop": Loss(discopop, of_margin=True),
    "sppo": Loss(sppo),
    "nca": Loss(nca),
    "apo_zero": Loss(apo_zero, unpaired=True),
    "apo_down": Loss(apo_down),
    "kto": Loss(kto, unpaired=True, mean=True, jointly=True),
    "bco": Loss(bco, unpaired=True, jointly=True),
    "aot": Loss(aot, jointly=True, sorts=True),
    "aot_unpaired": Loss(aot_unpaired, jointly=True, sorts=True),
    "cpo": Loss(cpo, "logps"),
    "simpo": Loss(simpo, "mean_logps"),
    "orpo": Loss(orpo, "log_odds"),
    "sft": Loss(sft, "mean_logps"),
}


# Loss inputs


def log_odds(mean_logps: Tensor) -> Tensor:
    """log(p / (1 - p)) of the average token's probability p (ORPO, arXiv:2403.07691, eq. 4), finite also at p = 1."""
    mean_logps = mean_logps.clamp(max=-1e-6)
    return mean_logps - (-torch.expm1(mean_logps)).log()


def f_derivative(logratios: Tensor, divergence: str, alpha: float = 0.5) -> Tensor:
    """f'(u), u = pi / pi_ref, which replaces the log-ratio under another f-divergence. 0 at u = 1.

    f-DPO, arXiv:2309.16240, table 1. forward_kl: 1 - 1 / u; js: log(2 u / (1 + u)); alpha: (1 - u^-alpha) / alpha, between
    the reverse KL (alpha to 0: the log-ratio) and the forward KL (alpha = 1). Values are clamped at -exp(40).
    """
    if divergence == "js":
        return math.log(2) + F.logsigmoid(logratios)
    power = alpha if divergence == "alpha" else 1.0
    return -torch.expm1((-power * logratios).clamp(max=40 + math.log(power))) / power
