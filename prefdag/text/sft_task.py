"""Supervised fine-tuning as a task of the training loop: cross-entropy on responses, a mean over tokens."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from prefdag.text.scoring.logps import response_logps
from prefdag.text.scoring.packing import Group, pack
from prefdag.train.task import Task


def sft_task(groups: Sequence[Group], ids: Sequence[str]) -> Task:
    """-log pi(response | prompt), weighted by tokens: long responses count for more than short ones."""

    def forward(model: nn.Module, rows: Sequence[int], epoch: int | None) -> Mapping[str, Tensor]:
        packed = pack([groups[i] for i in rows]).to(next(model.parameters()).device)
        return {"logps": response_logps(model, packed)}

    weights = [float(sum(map(len, group.responses))) for group in groups]
    return Task(forward, lambda outputs: (-outputs["logps"], {}), weights, ids)
