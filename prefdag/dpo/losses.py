"""Preference losses: pure functions from the scores of a pair's two responses to one loss a pair.

Notation, all of shape (pairs,) and in nats. A response's score is, for most losses, its log-ratio
log pi(y|x) - log pi_ref(y|x); its implicit reward r is beta times the score (DPO, arXiv:2305.18290, section 4); h is the
chosen score minus the rejected one, z = beta h, s the sigmoid. `LOSSES` says which score a loss takes; `preference.py`
computes the scores and puts weights, soft labels and constraints around the loss. Keyword arguments are the loss's own
parameters, under the names that params.yaml has for them in `loss_options`, or of `EXTRAS`.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from prefdag.config.loss import LossName


# Losses of the margin


def sigmoid(chosen: Tensor, rejected: Tensor, beta: float, *, label_smoothing: float = 0.0) -> Tensor:
    """-(1 - e) log s(z) - e log s(-z)

    DPO, arXiv:2305.18290, eq. 7. With label smoothing e above 0: conservative DPO (cDPO). At h = 0 it is ln 2,
    whatever beta and e.
    """
    z = beta * (chosen - rejected)
    return -(1 - label_smoothing) * F.logsigmoid(z) - label_smoothing * F.logsigmoid(-z)


def robust(chosen: Tensor, rejected: Tensor, beta: float, *, label_smoothing: float = 0.0) -> Tensor:
    """(-(1 - e) log s(z) + e log s(-z)) / (1 - 2 e)

    Robust DPO, arXiv:2403.00409: unbiased where a share e of the labels is flipped. It has no lower bound.
    """
    z = beta * (chosen - rejected)
    return (-(1 - label_smoothing) * F.logsigmoid(z) + label_smoothing * F.logsigmoid(-z)) / (1 - 2 * label_smoothing)


def exo(chosen: Tensor, rejected: Tensor, beta: float, *, label_smoothing: float = 1e-3) -> Tensor:
    """s(z) log(s(z) / (1 - e)) + s(-z) log(s(-z) / e)

    EXO for pairs, arXiv:2402.00856, eq. 16: KL(policy's preference || labels smoothed by e), the reverse of DPO's.
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

    IPO, arXiv:2310.12036, eq. 17, the paper's tau being beta. With `reduction: mean` the log-ratios are those of the
    average token, as the paper's authors ran it.
    """
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def discopop(chosen: Tensor, rejected: Tensor, beta: float, *, discopop_tau: float = 0.05) -> Tensor:
    """-(1 - m) log s(z) + m exp(-z), m = s(z / tau)

    DiscoPOP, arXiv:2406.08414, eq. 5: found by a search with a language model; not convex. Logistic to the left,
    exponential to the right. The second product is taken in logarithms, where exp(-z) alone would be infinite.
    """
    z = beta * (chosen - rejected)
    left = (-z / discopop_tau).sigmoid()
    return -left * F.logsigmoid(z) + (F.logsigmoid(z / discopop_tau) - z).clamp(max=80).exp()


# Losses of either reward


def sppo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """(chosen - 1 / (2 beta))^2 + (rejected + 1 / (2 beta))^2, of the log-ratios

    SPPO, arXiv:2405.00675, eq. 4.7, with probability 1 for the chosen response and 0 for the rejected one.
    """
    return (chosen - 1 / (2 * beta)) ** 2 + (rejected + 1 / (2 * beta)) ** 2


def nca(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """-log s(r_w) - log s(-r_w) / 2 - log s(-r_l) / 2

    NCA for pairs, arXiv:2402.05369: it also keeps the chosen response likely.
    """
    r_w, r_l = beta * chosen, beta * rejected
    return -F.logsigmoid(r_w) - 0.5 * F.logsigmoid(-r_w) - 0.5 * F.logsigmoid(-r_l)


def apo_down(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """s(r_w) + 1 - s(r_w - r_l)

    APO-down, arXiv:2408.06266, eq. 8. For chosen responses that are worse than the policy's own.
    """
    return (beta * chosen).sigmoid() + (-beta * (chosen - rejected)).sigmoid()


# Losses of one response at a time: they take unpaired data, too, and give the loss of either response


def apo_zero(chosen: Tensor, rejected: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """1 - s(r_w) + s(r_l)

    APO-zero, arXiv:2408.06266, eq. 7. For chosen responses that are better than the policy's own.
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

    KTO, arXiv:2402.01306, section 4.1, d and u being the weights. z0 estimates KL(policy || reference) over the rows of an
    optimiser step and passes no gradient; `kl`, (pairs,), holds what each row says of it (see `preference.Scores`).
    """
    z0 = kl.detach().mean().clamp(min=0)
    return desirable_weight * (-beta * (chosen - z0)).sigmoid(), undesirable_weight * (
        -beta * (z0 - rejected)
    ).sigmoid()


def bco(chosen: Tensor, rejected: Tensor, beta: float, *, present: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """-log s(r_w - d) - log s(-(r_l - d)), d = (mean of r_w + mean of r_l) / 2

    BCO, arXiv:2404.04656. The reward shift d is taken over the rows of an optimiser step, where the paper keeps a moving
    average: a step is then a function of its rows alone. It passes no gradient. A step without chosen or without rejected
    responses takes the other mean alone. `present`: 1 where a row has a chosen, a rejected response, (pairs,) each.
    """
    r_w, r_l = beta * chosen, beta * rejected
    sides = [(r.detach() * has).sum() / has.sum() for r, has in zip((r_w, r_l), present, strict=True) if has.any()]
    shift = torch.stack(sides).mean()
    return -F.logsigmoid(r_w - shift), -F.logsigmoid(shift - r_l)


# Losses of sorted batches


def aot(chosen: Tensor, rejected: Tensor, beta: float, *, ref_margin: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """DPO's of z_i = beta (sorted policy margins - sorted reference margins)_i

    AOT for pairs, arXiv:2406.05882: the policy's margins log pi(y_w|x) - log pi(y_l|x) are to dominate the reference's
    as distributions over the rows of an optimiser step. The loss at a place belongs to no single row.
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

    CPO, arXiv:2401.08417, section 3. The cross-entropy is a mean over the chosen response's tokens, as its authors ran it,
    w its weight.
    """
    return sigmoid(chosen, rejected, beta, label_smoothing=label_smoothing) - sft_weight * chosen_mean_logps


def simpo(
    chosen: Tensor, rejected: Tensor, beta: float, *, simpo_gamma: float = 0.5, label_smoothing: float = 0.0
) -> Tensor:
    """DPO's of z = beta (log pi(y_w|x) / |y_w| - log pi(y_l|x) / |y_l|) - gamma

    SimPO, arXiv:2405.14734, eq. 6. Its beta is of another size: 2 to 2.5 in the paper.
    """
    z = beta * (chosen - rejected) - simpo_gamma
    return sigmoid(z, torch.zeros_like(z), 1.0, label_smoothing=label_smoothing)


def orpo(
    chosen: Tensor, rejected: Tensor, beta: float, *, chosen_mean_logps: Tensor, sft_weight: float = 1.0
) -> Tensor:
    """-beta log s(log-odds of y_w - log-odds of y_l) - w log pi(y_w|x) / |y_w|

    ORPO, arXiv:2403.07691, eq. 6 and 7, the paper's lambda being beta. The odds are of the average token,
    p = exp(log pi(y|x) / |y|).
    """
    return -beta * F.logsigmoid(chosen - rejected) - sft_weight * chosen_mean_logps


def sft(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """-log pi(y_w|x) / |y_w|

    RPO's term, arXiv:2404.19733v3, eq. 1: cross-entropy on the chosen response, a mean over its tokens; the paper's alpha is
    its weight. It learns no preference: it stands in a sum with a loss that does.
    """
    return -chosen


Score = Literal["logratios", "logps", "mean_logps", "log_odds"]

# Keyword arguments of losses that are no parameters but follow from the rows.
EXTRAS = ("kl", "present", "ref_margin", "chosen_mean_logps")


@dataclass(frozen=True)
class Loss:
    """A loss, and what `preference.py` has to know of it."""

    function: Callable[..., Any]
    score: Score = "logratios"
    of_margin: bool = False  # a function of the scores' difference alone
    jointly: bool = False  # looks at all rows of an optimiser step at once
    sorts: bool = False  # its values belong to no single row
    unpaired: bool = False  # gives the loss of either response, and takes rows that have one alone
    mean: bool = False  # unpaired: the mean over a row's responses, not their sum

    @property
    def keywords(self) -> dict[str, Any]:
        """The loss's keyword arguments and their defaults."""
        return {
            name: parameter.default
            for name, parameter in inspect.signature(self.function).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }


LOSSES: Mapping["LossName", Loss] = {
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


# Scores


def log_odds(mean_logps: Tensor) -> Tensor:
    """log(p / (1 - p)) of the average token's probability p (ORPO, arXiv:2403.07691, eq. 4), finite also at p = 1."""
    mean_logps = mean_logps.clamp(max=-1e-6)
    return mean_logps - (-torch.expm1(mean_logps)).log()


def f_score(logratios: Tensor, divergence: str, alpha: float = 0.5) -> Tensor:
    """What takes the log-ratio's place under another f-divergence: f'(u), u = pi / pi_ref, 0 at u = 1.

    f-DPO, arXiv:2309.16240, table 1. forward_kl: 1 - 1 / u; js: log(2 u / (1 + u)); alpha: (1 - u^-alpha) / alpha, between
    the reverse KL (alpha to 0: the log-ratio) and the forward KL (alpha = 1). Scores stop at -exp(40).
    """
    if divergence == "js":
        return math.log(2) + F.logsigmoid(logratios)
    power = alpha if divergence == "alpha" else 1.0
    return -torch.expm1((-power * logratios).clamp(max=40 + math.log(power))) / power
