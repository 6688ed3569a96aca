"""Pairs of texts as the preference loss takes them: log-probabilities under policy and reference side by side."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from prefdag.dpo.pair_batch import PairBatch, Response

if TYPE_CHECKING:
    from prefdag.text.scoring.logps import Pair, PairLogps, ResponseLogps
    from prefdag.text.scoring.packing import TokenIds


def pair_batch(pairs: Sequence["Pair"], policy: "PairLogps", reference: "PairLogps") -> PairBatch:
    """Pairs under both models. With mismatched responses under both, `kl` is their log-ratio, without gradient.

    An absent response counts as one token of log-probability 0.
    """
    chosen = _response([pair.chosen for pair in pairs], policy.chosen, reference.chosen)
    rejected = _response([pair.rejected for pair in pairs], policy.rejected, reference.rejected)
    if policy.mismatched is None or reference.mismatched is None:
        return PairBatch(chosen, rejected)
    return PairBatch(chosen, rejected, kl=policy.mismatched.logps.detach() - reference.mismatched.logps)


def _response(texts: Sequence["TokenIds | None"], policy: "ResponseLogps", reference: "ResponseLogps") -> Response:
    tokens = torch.tensor([1 if ids is None else len(ids) for ids in texts], device=policy.logps.device)
    return Response(
        logps=policy.logps,
        ref_logps=reference.logps,
        tokens=tokens.to(policy.logps),
        shared_logps=policy.shared_logps,
        ref_shared_logps=reference.shared_logps,
        confidence=policy.confidence,
    )
