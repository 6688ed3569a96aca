"""Supervised fine-tuning: cross-entropy on responses, as a mean over tokens."""

from collections.abc import Sequence

from torch import nn

from prefdag.dpo.trainer import Outcome, Task
from prefdag.text.logps import response_logps
from prefdag.text.packing import Group, pack


def imitation(groups: Sequence[Group], ids: Sequence[str]) -> Task:
    """-log pi(response | prompt), weighted by tokens: a long response counts for more than a short one."""

    def objective(model: nn.Module, rows: Sequence[int], epoch: int | None) -> Outcome:
        packed = pack([groups[i] for i in rows]).to(next(model.parameters()).device)
        return -response_logps(model, packed), {}

    return Task(objective, [float(sum(map(len, group.responses))) for group in groups], ids)
