"""Pairs of responses as a task of the trainer: what policy and reference say of them, and the preference's loss of that."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prefdag.text.scoring.logps import Pair, score_pairs
from prefdag.train.task import ModelOutputs, Task

if TYPE_CHECKING:
    from prefdag.dpo.preference import Preference


def dpo_task(
    pairs: Sequence[Pair],
    ids: Sequence[str],
    constants: Mapping[str, Tensor],
    preference: "Preference",
    reference: nn.Module | None = None,
) -> Task:
    """Learning `preference` from `pairs`, a row each.

    Args:
        ids: how an error names a row.
        constants: scores that are known, (rows,) each: the reference's log-probabilities as "ref_chosen", ...
        reference: scores the pairs beside the policy, for what is not known; without gradient.
    """

    def score(model: nn.Module, rows: Sequence[int], epoch: int | None) -> ModelOutputs:
        batch = [pairs[i] for i in rows]
        outputs = score_pairs(model, batch, confidence=preference.needs("confidence"))
        if reference:
            with torch.no_grad():
                outputs |= {f"ref_{name}": t for name, t in score_pairs(reference, batch).items()}
        outputs |= {name: values[list(rows)].to(outputs["chosen"]) for name, values in constants.items()}
        if "mismatched" in outputs:
            outputs["kl"] = outputs["mismatched"].detach() - outputs["ref_mismatched"]
        return outputs

    return Task(score, preference, [1.0] * len(pairs), ids, preference.jointly)
