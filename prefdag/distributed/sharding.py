"""A model whose weights are divided over the processes: each holds a part, and gathers a block when it computes it.

By torch's `fully_shard` (FSDP2, arXiv:2304.11277). The parameters of such a model are `DTensor`s. Each forward and backward
pass gathers, so all processes must make as many of them.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from prefdag.distributed.process import process


def shard(model: nn.Module, blocks: Iterable[nn.Module]) -> None:
    """Divide the weights of `model`, in place, over all processes. With one process this does nothing.

    Do it before anything else takes hold of the parameters: an optimiser, a hook, a checkpoint.

    Args:
        blocks: the parts that are gathered one at a time, such as transformer layers. What is outside of them is one more.
    """
    state = process()
    if state.num_processes == 1:
        return
    mesh = init_device_mesh(state.device.type, (state.num_processes,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(module, FSDPModule) for module in model.modules())


def reshard(model: nn.Module) -> None:
    """Give up what has been gathered, so that the parameters of `model` are the divided ones again.

    A forward pass without a backward pass leaves those outside the blocks whole. Whoever takes the parameters then, such as an
    optimiser, has copies that are never trained.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The tensor, gathered from all processes if it is divided. All processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def with_part(divided: Tensor, part: Tensor) -> Tensor:
    """A tensor divided as `divided` is, a `DTensor` that may have no data, with `part` as this process's part."""
    assert isinstance(divided, DTensor)
    assert divided.to_local().shape == part.shape
    part = part.clone() if part.device.type == "cpu" else part  # which may lie in a file
    return DTensor.from_local(
        part, divided.device_mesh, divided.placements, run_check=False, shape=divided.shape, stride=divided.stride()
    )


def is_part(tensor: Tensor) -> bool:
    """Whether the tensor is divided."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """This process's part of the tensor; all of it if it is not divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_on_first(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Copies of the tensors on the CPU, gathered one by one; on other processes than the first, empty ones in their place.

    Args:
        dtype: of the copies; None: that of each tensor.
    """
    first = process().is_main_process
    copies = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor.detach())
        copies[name] = gathered.to("cpu", dtype).contiguous().clone() if first else torch.empty(0)
    return copies


@torch.no_grad()
def put(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor, which all processes have, into `target`, which may be divided."""
    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device, target.dtype), target.device_mesh, target.placements)
    target.copy_(value)


def summed(number: float) -> float:
    """The sum of a number over all processes."""
    state = process()
    if state.num_processes == 1:
        return number
    value = torch.tensor(number, dtype=torch.float64, device=state.device)
    torch.distributed.all_reduce(value)
    return float(value)
