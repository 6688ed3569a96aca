"""Checks of a loss of the user's own before training: what the built-in losses are tested for, on a few pairs."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefdag.dpo.losses import EXTRAS, Loss
from prefdag.lifecycle.errors import ParamsError

# Inputs of chosen and rejected. The first pair is where training starts: policy and reference are equal.
LOGRATIOS = ([0.0, 0.5, -1.0, 0.2, 0.0], [0.0, -0.3, 0.4, 0.2, 1.5])
LOGPS = ([-1.0, -0.5, -1.5, -0.7, -2.0], [-1.0, -1.2, -0.4, -0.7, -0.3])
TOLERANCE = 1e-4  # absolute and relative


def check_loss(name: str, loss: Loss, beta: float, options: Mapping[str, Any]) -> None:
    """Raises `ParamsError`, one line, if `loss` cannot be trained on or is not what it is registered as.

    It must take (chosen, rejected, beta) and named options with defaults. It must return one finite loss per pair, (pairs,),
    with a finite gradient, also where policy and reference are equal. A pair's loss must not depend on the other pairs unless
    `jointly` is set, and only on the margin if `of_margin` is set.

    Args:
        options: those of params.yaml; the loss gets the ones that it takes.
    """
    where = f"{_place(loss)}loss '{name}'"
    if loss.input not in ("logratios", "logps", "mean_logps", "log_odds"):
        raise ParamsError(f"{where}: input {loss.input!r}: use logratios, logps, mean_logps or log_odds")
    if loss.sorts and not loss.jointly:
        raise ParamsError(f"{where}: sorts=True needs jointly=True")
    for key, default in loss.keywords.items():
        if default is inspect.Parameter.empty and key not in EXTRAS:
            raise ParamsError(f"{where}: option '{key}' has no default; give it one")
    own = {key: value for key, value in options.items() if key in loss.keywords}

    def of(chosen: Tensor, rejected: Tensor) -> Tensor:
        ones = torch.ones_like(chosen)
        extras = {"kl": 0 * ones, "present": (ones, ones), "ref_margin": 0 * ones, "chosen_mean_logps": -ones}
        extras = {key: value for key, value in extras.items() if key in loss.keywords}
        try:
            values = loss.function(chosen, rejected, beta, **extras, **own)
        except Exception as error:  # the user's code may raise anything
            message = " ".join(str(error).split())
            raise ParamsError(f"{where}: raises {type(error).__name__}: {message}") from error
        return _sum(values, loss, len(chosen), where)

    chosen, rejected = (torch.tensor(side) for side in (LOGRATIOS if loss.input == "logratios" else LOGPS))
    leaves = [side.clone().requires_grad_() for side in (chosen, rejected)]
    losses = of(*leaves)
    _check_finite(losses.detach(), "loss", where, leaves)
    if not losses.requires_grad:
        raise ParamsError(
            f"{where}: has no gradient; compute it from chosen and rejected with torch, without .detach()"
        )
    gradients = [g for g in torch.autograd.grad(losses.sum(), leaves, allow_unused=True) if g is not None]
    for gradient in gradients:
        _check_finite(gradient, "gradient", where, leaves)
    if not any(gradient.any() for gradient in gradients):
        raise ParamsError(f"{where}: its gradient is zero; it would learn nothing")
    losses = losses.detach()
    if not loss.jointly:
        alone = torch.cat([of(chosen[i : i + 1], rejected[i : i + 1]).detach() for i in range(len(chosen))])
        if not torch.allclose(alone, losses, TOLERANCE, TOLERANCE):
            raise ParamsError(f"{where}: a pair's loss depends on the other pairs; register it with jointly=True")
    if loss.of_margin and not torch.allclose(of(chosen - 0.5, rejected - 0.5).detach(), losses, TOLERANCE, TOLERANCE):
        raise ParamsError(f"{where}: depends on more than chosen - rejected; register it without of_margin=True")


def _sum(values: Any, loss: Loss, pairs: int, where: str) -> Tensor:
    """The loss of each pair, (pairs,), from what the function returned."""
    parts = values if loss.unpaired and isinstance(values, tuple) else (values,)
    wanted = 2 if loss.unpaired else 1
    if len(parts) != wanted or not all(isinstance(part, Tensor) and part.shape == (pairs,) for part in parts):
        returned = ", ".join(
            f"shape {tuple(part.shape)}" if isinstance(part, Tensor) else type(part).__name__ for part in parts
        )
        needed = (
            "the losses of chosen and of rejected, (pairs,) each" if loss.unpaired else "one loss per pair, (pairs,)"
        )
        raise ParamsError(f"{where}: returns {returned} for {pairs} pairs; return {needed}")
    return torch.stack(parts).sum(0)


def _check_finite(values: Tensor, what: str, where: str, inputs: list[Tensor]) -> None:
    for value, chosen, rejected in zip(values.tolist(), *(side.tolist() for side in inputs), strict=True):
        if not abs(value) < float("inf"):
            raise ParamsError(f"{where}: {what} {value} at chosen {chosen:g}, rejected {rejected:g}; it must be finite")


def _place(loss: Loss) -> str:
    """The file and line of the loss's function, if it is in the current folder."""
    function = inspect.unwrap(getattr(loss.function, "func", loss.function))
    code = getattr(function, "__code__", None)
    if code is None or not Path(code.co_filename).is_relative_to(Path.cwd()):
        return ""
    return f"{Path(code.co_filename).relative_to(Path.cwd())}:{code.co_firstlineno}: "
