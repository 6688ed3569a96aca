"""Supervised fine-tuning: cross-entropy on responses, as a mean over tokens."""

from collections.abc import Sequence

from torch import nn

from prefdag.text.scoring.logps import response_logps
from prefdag.text.scoring.packing import Group, pack
from prefdag.train.task import ModelOutputs, Task


def sft_task(groups: Sequence[Group], ids: Sequence[str]) -> Task:
    """-log pi(response | prompt), weighted by tokens: a long response counts for more than a short one."""

    def score(model: nn.Module, rows: Sequence[int], epoch: int | None) -> ModelOutputs:
        packed = pack([groups[i] for i in rows]).to(next(model.parameters()).device)
        return {"logps": response_logps(model, packed)}

    weights = [float(sum(map(len, group.responses))) for group in groups]
    return Task(score, lambda outputs: (-outputs["logps"], {}), weights, ids)
