"""Pairs of responses as a task of the trainer: what policy and reference say of them, and the preference's loss of that."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from prefdag.dpo.passes import Said, Task
from prefdag.dpo.preference import Preference
from prefdag.text.logps import Pair, score_pairs


def preference_task(
    pairs: Sequence[Pair],
    ids: Sequence[str],
    constants: Mapping[str, Tensor],
    preference: Preference,
    reference: nn.Module | None = None,
) -> Task:
    """Learning `preference` from `pairs`, a row each.

    Args:
        ids: how an error names a row.
        constants: scores that are known, (rows,) each: the reference's log-probabilities as "ref_chosen", ...
        reference: scores the pairs beside the policy, for what is not known; without gradient.
    """

    def score(model: nn.Module, rows: Sequence[int], epoch: int | None) -> Said:
        batch = [pairs[i] for i in rows]
        said = score_pairs(model, batch, confidence=preference.needs("confidence"))
        if reference:
            with torch.no_grad():
                said |= {f"ref_{name}": t for name, t in score_pairs(reference, batch).items()}
        said |= {name: values[list(rows)].to(said["chosen"]) for name, values in constants.items()}
        if "mismatched" in said:
            said["kl"] = said["mismatched"].detach() - said["ref_mismatched"]
        return said

    return Task(score, preference, [1.0] * len(pairs), ids, preference.jointly)
