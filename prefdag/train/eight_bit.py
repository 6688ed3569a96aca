"""AdamW with its moments in 8 bits, arXiv:2110.02861, by the kernels of bitsandbytes."""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prefdag.distributed.sharding import local
from prefdag.lifecycle.errors import ParamsError

BLOCK = 256  # numbers that share a scale, in the kernels
SMALLEST = 4096  # numbers; smaller tensors stay in float32, as in bitsandbytes' own optimisers
MOMENTS = ("exp_avg", "exp_avg_sq")
KEY = "params.yaml: training.optimizer"


def check_installed() -> None:
    """Raises `ParamsError` without bitsandbytes."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ParamsError(f"{KEY}: adamw_8bit needs bitsandbytes; run `make qlora` to install it, or set it to adamw")


def in_blocks(p: Tensor) -> bool:
    """Whether the moments of `p` are in 8 bits: each of its rows is so many blocks, so a divided weight has the same blocks."""
    rows_of_blocks = p.ndim > 1 and (p.numel() // max(1, p.shape[0])) % BLOCK == 0
    return rows_of_blocks and p.numel() >= SMALLEST and p.is_contiguous()


class AdamW8bit(torch.optim.AdamW):
    """Torch's AdamW, but for the weights that are `in_blocks`: their moments are codes of 8 bits, with a scale for each block.

    The weights themselves, and what is computed in a step, have the precision of the weights. The moments of a divided weight
    (see `sharding`) are divided like it, and have the same codes and scales.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        """
        Raises:
            ParamsError: no weight is `in_blocks`.
        """
        super().__init__(parameters, lr, weight_decay=weight_decay, fused=True)
        coded = [p for p in parameters if in_blocks(p)]
        if not coded:
            raise ParamsError(
                f"{KEY}: adamw_8bit is adamw here: no trained weight has {SMALLEST} numbers in rows of a multiple of {BLOCK}; "
                "set it to adamw"
            )
        for p in coded:
            one_of_each_block = p.detach().flatten(1)[:, ::BLOCK]
            self.state[p]["step"] = torch.tensor(0.0)
            for moment in MOMENTS:
                self.state[p][moment] = torch.zeros_like(p, dtype=torch.uint8)
                self.state[p][f"{moment}_scale"] = torch.zeros_like(one_of_each_block, dtype=torch.float32)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update. The gradients of weights `in_blocks` are gone afterwards."""
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and f"{MOMENTS[0]}_scale" in self.state[p]:
                    _update(p, p.grad, self.state[p], group)
                    p.grad = None  # torch's AdamW leaves it alone
        return super().step()


def _update(p: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    """The update of one weight, or of this process's rows of it."""
    from bitsandbytes.functional import optimizer_update_8bit_blockwise

    state["step"] += 1
    weight = local(p)
    beta1, beta2 = group["betas"]
    if not weight.numel():  # fewer rows than processes
        return
    codes, scales = ([local(state[f"{moment}{of}"]) for moment in MOMENTS] for of in ("", "_scale"))
    assert all(code.dtype == torch.uint8 for code in codes)  # the kernel would read the bytes of any other as codes
    assert all(scale.is_contiguous() and scale.numel() * BLOCK == weight.numel() for scale in scales)
    optimizer_update_8bit_blockwise(
        "adam",
        local(grad).contiguous(),
        weight,
        state1=codes[0],
        state2=codes[1],
        beta1=beta1,
        beta2=beta2,
        beta3=0.0,  # of other optimisers, as alpha
        alpha=0.0,
        eps=group["eps"],
        step=int(state["step"]),
        lr=group["lr"],
        qmap1=_codes(weight.device, signed=True),
        qmap2=_codes(weight.device, signed=False),
        absmax1=scales[0].view(-1),
        absmax2=scales[1].view(-1),
        weight_decay=group["weight_decay"],
    )


@functools.cache
def _codes(device: torch.device, *, signed: bool) -> Tensor:
    """The numbers from -1 or 0 to 1 that the 256 codes stand for."""
    from bitsandbytes.functional import create_dynamic_map

    return create_dynamic_map(signed=signed).to(device)
