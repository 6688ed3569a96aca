"""A batch of pairs as a preference loss takes it: each response's log-probabilities under policy and reference."""

from typing import NamedTuple

from torch import Tensor


class Response(NamedTuple):
    """One response per pair. Tensors of shape (pairs,), log-probabilities in nats, float32 or wider.

    An image classifier's response is a class; it has one token. None: not needed, or as the field says.
    """

    logps: Tensor  # log pi(y | x), summed over the tokens of y
    ref_logps: Tensor  # the same under the reference
    tokens: Tensor  # |y|
    shared_logps: Tensor | None = None  # log pi of the first min(|y_w|, |y_l|) tokens; None: of all tokens
    ref_shared_logps: Tensor | None = None
    confidence: Tensor | None = None  # mean over tokens of log pi(y_t) - log sum_v pi(v)^2, without gradient
    present: Tensor | None = None  # 1.0 where the pair has this response, else 0.0; None: everywhere


class PairBatch(NamedTuple):
    """Pairs of a chosen and a rejected response. Tensors of shape (pairs,)."""

    chosen: Response
    rejected: Response
    kl: Tensor | None = None  # estimates KL(policy || reference), without gradient: KTO's mismatched log-ratio
    exact_kl: Tensor | None = None  # KL(policy || reference) of the row, with gradient, where it can be computed
    preference: Tensor | None = None  # probability that chosen is preferred; None: 1

    def swapped(self) -> "PairBatch":
        """The same pairs with chosen and rejected exchanged."""
        return self._replace(chosen=self.rejected, rejected=self.chosen)
