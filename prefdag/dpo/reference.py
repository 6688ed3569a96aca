"""The reference model during training: frozen and checked, or updated from the policy as set in params.yaml.

Updates: `polyak`, a moving average; `copy`, at the end of an epoch; `sync`, TR-DPO (arXiv:2404.09656), soft (alpha below 1)
or hard (alpha 1).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prefdag.distributed.sharding import is_part, local, reshard, summed
from prefdag.dpo.hook import StepHook

if TYPE_CHECKING:
    from prefdag.config.reference import Reference


class MovingReference(StepHook):
    """A reference model that is updated from its policy.

    Args:
        model: the reference: frozen, in eval mode, equal to the policy at the start.
        follow: returns the policy's current tensors, by the names of the reference's parameters and buffers. Tensors that it
            leaves out are not updated.
    """

    def __init__(self, model: nn.Module, follow: Callable[[], Mapping[str, Tensor]], config: "Reference") -> None:
        self.model = model
        self.follow = follow
        self.config = config
        self.steps = torch.zeros((), dtype=torch.int64)
        own = dict(model.named_parameters()) | dict(model.named_buffers())
        self.moving = {name: own[name] for name in follow()}

    def state(self) -> dict[str, Tensor]:
        """The tensors that are updated, and the number of steps taken."""
        return {"steps": self.steps, **{f"reference/{name}": t for name, t in self.moving.items()}}

    @torch.no_grad()
    def after_step(self, metrics: Mapping[str, float], epoch_ends: bool) -> None:
        """reference + alpha (policy - reference): every step, at the end of an epoch, or every `every` steps.

        Integer tensors (BatchNorm's count of batches) are copied.
        """
        self.steps += 1
        match self.config.update:
            case "polyak":
                due = True
            case "copy":
                due = epoch_ends
            case "sync":
                due = int(self.steps) % (self.config.every or 1) == 0
            case _:
                due = False
        if not due:
            return
        reshard(self.model)  # what it has gathered would stay as it was
        alpha = self.config.alpha or 1.0
        for name, policy in self.follow().items():
            reference = self.moving[name]
            if alpha < 1 and reference.is_floating_point():
                reference.lerp_(policy.to(reference), alpha)
            else:
                reference.copy_(policy)


class FrozenCheck(StepHook):
    """Counts frozen tensors that changed, at every validation.

    `drift/reference`: tensors of the reference, or of the base model under adapters. `drift/buffers`: BatchNorm buffers.
    """

    def __init__(self, reference: Iterable[Tensor], buffers: Iterable[Tensor] = ()) -> None:
        # Fingerprints from before a checkpoint is restored; no checkpoint contains these tensors.
        self.tensors = {"drift/reference": list(reference), "drift/buffers": list(buffers)}
        self.before = {name: [fingerprint(t) for t in tensors] for name, tensors in self.tensors.items()}

    def metrics(self) -> dict[str, float]:
        """The number of tensors that changed; of sharded ones, the number of parts."""
        return {name: self._changed(name) for name in self.tensors}

    def _changed(self, name: str) -> float:
        tensors = self.tensors[name]
        count = float(sum(fingerprint(t) != old for t, old in zip(tensors, self.before[name], strict=True)))
        return summed(count) if any(is_part(t) for t in tensors) else count


@torch.no_grad()
def fingerprint(tensor: Tensor) -> tuple[int, int]:
    """Two sums over a tensor's bits, the second weighted by position: it detects changed values and exchanged ones.

    Of a sharded tensor, those of this process's part.
    """
    flat = local(tensor.detach()).contiguous().view(-1).view(torch.uint8)
    flat = flat.clone() if flat.storage_offset() % 8 else flat
    even = len(flat) // 256 * 256
    words = flat[:even].view(torch.int64).view(-1, 32)
    # Sums of whole words and of their upper halves: modulo 2^64, two changed top bits would cancel. Each part fits in a cache.
    sums = [torch.cat([part.sum(0), (part >> 32).sum(0)]) for part in words.split(2**13)]
    columns = torch.cat([*torch.stack(sums).sum(0, keepdim=True), flat[even:].to(torch.int64)])
    return int(columns.sum()), int((columns * torch.arange(1, len(columns) + 1, device=flat.device)).sum())
