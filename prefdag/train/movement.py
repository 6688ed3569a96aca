"""A check that training has changed every tensor that it should.

The loss may fall although a part of the model is never trained, because the rest is.
"""

import logging
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

log = logging.getLogger(__name__)

BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}  # integers as wide as a number, in bytes


def fingerprints(parameters: Mapping[str, nn.Parameter]) -> dict[str, int]:
    """A number for each tensor, by name, that changes with its bits: their sum as integers.

    Of a tensor that is divided over processes, this process's part.
    """
    return {name: _sum_of_bits(parameter) for name, parameter in parameters.items()}


def warn_of_unchanged(
    accelerator: Accelerator, parameters: Mapping[str, nn.Parameter], before: Mapping[str, int], steps: int
) -> None:
    """Warn of tensors that are what they were `steps` steps ago, by their fingerprints. All processes must call it."""
    changed = torch.tensor([value != before[name] for name, value in fingerprints(parameters).items()])
    anywhere = accelerator.reduce(changed.to(accelerator.device, torch.int32), "sum").tolist()
    names = [name for name, n in zip(before, anywhere, strict=True) if not n]
    # After one step, LoRA's A is as before: its gradient is zero while B is.
    if names and steps > 1 and accelerator.is_main_process:
        log.warning(
            "%s%s: not changed by %d steps, of %d tensors that are trained: the data gives no gradient there, or "
            "training.learning_rate is below their precision",
            *(names[0], f" and {len(names) - 1} more" if len(names) > 1 else "", steps, len(before)),
        )


def _sum_of_bits(tensor: Tensor) -> int:
    part = tensor.detach()
    part = part.to_local() if isinstance(part, DTensor) else part
    return int(part.contiguous().view(BITS[part.element_size()]).sum(dtype=torch.int64))
