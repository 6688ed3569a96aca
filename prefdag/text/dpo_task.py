"""DPO on pairs of texts, as a task of the training loop."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prefdag.text.dpo_batch import pair_batch
from prefdag.text.scoring.logps import Pair, PairLogps, pair_logps
from prefdag.train.outputs import map_tensors
from prefdag.train.task import Task

if TYPE_CHECKING:
    from prefdag.dpo.pair_batch import PairBatch
    from prefdag.dpo.preference import Preference

# The reference's log-probabilities of some of a task's pairs, by row numbers; without gradient.
ReferenceLogps = Callable[[Sequence[int]], PairLogps]


def dpo_task(
    pairs: Sequence[Pair],
    ids: Sequence[str],
    preference: "Preference",
    ref_logps: ReferenceLogps,
    *,
    labels: Tensor | None = None,
    present: tuple[Tensor, Tensor] | None = None,
) -> Task:
    """Training by `preference` on `pairs`, one per row.

    Args:
        ids: the rows' names in error messages.
        ref_logps: from `live_logps` or `cached_logps`.
        labels: probabilities that chosen is preferred, (rows,); None: 1.
        present: 1.0 where a row has a chosen response, and where it has a rejected one, (rows,) each; None: everywhere.
    """

    def forward(model: nn.Module, rows: Sequence[int], epoch: int | None) -> "PairBatch":
        chunk = [pairs[i] for i in rows]
        policy = pair_logps(model, chunk, confidence=preference.uses_confidence)

        def as_policy(values: Tensor) -> Tensor:
            return values.to(policy.chosen.logps)

        batch = pair_batch(chunk, policy, map_tensors(as_policy, ref_logps(rows)))
        if labels is not None:
            batch = batch._replace(preference=as_policy(labels[list(rows)]))
        if present is not None:
            has_chosen, has_rejected = (as_policy(has[list(rows)]) for has in present)
            batch = batch._replace(
                chosen=batch.chosen._replace(present=has_chosen), rejected=batch.rejected._replace(present=has_rejected)
            )
        return batch

    return Task(forward, preference, [1.0] * len(pairs), ids, preference.jointly)


def live_logps(reference: nn.Module, pairs: Sequence[Pair]) -> ReferenceLogps:
    """Computed by `reference` in every step."""

    @torch.no_grad()
    def ref_logps(rows: Sequence[int]) -> PairLogps:
        return pair_logps(reference, [pairs[i] for i in rows])

    return ref_logps


def cached_logps(logps: PairLogps, live: ReferenceLogps | None = None) -> ReferenceLogps:
    """Looked up in `logps`, which has all rows; mismatched responses, which are never cached, come from `live`."""

    def ref_logps(rows: Sequence[int]) -> PairLogps:
        cached = map_tensors(lambda values: values[list(rows)], logps)
        return cached._replace(mismatched=live(rows).mismatched) if live else cached

    return ref_logps
