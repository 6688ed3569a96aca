"""Which options a loss uses. An option that is not used is an error, never silently ignored."""

from collections.abc import Mapping
from typing import Any

from prefdag.config.loss_options import LossOptions
from prefdag.dpo.losses import EXTRAS, LOSSES, Loss
from prefdag.lifecycle.errors import ParamsError
from prefdag.own_losses.names import OWN_LOSSES


def check_options(terms: Mapping[str, Loss], options: Mapping[str, Any], own: Mapping[str, Any] | None = None) -> None:
    """Raises `ParamsError` if losses cannot be summed, or if an option is set that none of them uses.

    Args:
        terms: the loss, or the losses of a sum, by name.
        own: the options in `loss_options.own`; `options` holds the others.
    """
    losses = {name: loss for name, loss in terms.items() if name != "sft"}
    if not losses:
        raise ParamsError("params.yaml: loss: 'sft' learns no preference; use it in a sum: {sigmoid: 1.0, sft: 1.0}")
    inputs = {loss.input: name for name, loss in losses.items()}
    if len(inputs) > 1:
        (a, first), (b, second) = list(inputs.items())[:2]
        raise ParamsError(
            f"params.yaml: loss: '{first}' takes {a}, '{second}' takes {b}; all losses of a sum must take the same input"
        )
    if "sft" in terms and ("orpo" in terms or "cpo" in terms):
        raise ParamsError("params.yaml: loss: orpo and cpo already include sft; set loss_options.sft_weight instead")
    used = used_options(terms, options)
    for key in options:
        if key not in used:
            others = f" with {', '.join(k for k in options if k != key)}" if len(options) > 1 else ""
            name = " + ".join(f"'{name}'" for name in terms)
            raise ParamsError(f"params.yaml: loss_options.{key}: loss {name}{others} does not use it; set it to null")
    for key in own or {}:
        if key in LossOptions.__dataclass_fields__:
            raise ParamsError(f"params.yaml: loss_options.own.{key}: set loss_options.{key} instead")
        if not any(key in loss.keywords for loss in terms.values()):
            name = " + ".join(f"'{name}'" for name in terms)
            raise ParamsError(f"params.yaml: loss_options.own.{key}: loss {name} does not use it; remove it")
    if "exo" in terms and options.get("label_smoothing") == 0:
        raise ParamsError(
            "params.yaml: loss_options.label_smoothing: loss 'exo' is infinite at 0; set it to 0.001, or null"
        )


def with_own(own: Mapping[str, Loss]) -> dict[str, Loss]:
    """All losses by name: the built-in ones, and the user's `own`. Raises `ParamsError` if a name is taken."""
    for name in own:
        if name in LOSSES:
            raise ParamsError(f"{OWN_LOSSES}: '{name}' is the name of a built-in loss; choose another name")
    return {**LOSSES, **own}


def used_options(terms: Mapping[str, Loss], options: Mapping[str, Any]) -> set[str]:
    """The options that a loss, or a sum of losses, uses, given the `options` that are set."""
    losses = {name: loss for name, loss in terms.items() if name != "sft"}
    used = {key for loss in losses.values() for key in loss.keywords} - set(EXTRAS)
    # KTO's KL estimate is of whole responses, so only log-ratios of whole responses are comparable with it.
    whole = all("kl" not in loss.keywords for loss in losses.values())
    if whole and all(loss.input == "logratios" for loss in losses.values()):
        used |= {"reduction", "reference_free"}
    if all(loss.of_margin for loss in losses.values()) and not options.get("reference_free"):
        used |= {"f_divergence"}
    if options.get("f_divergence") == "alpha":
        used |= {"f_alpha"}
    if (
        whole
        and all(loss.input in ("logratios", "logps") for loss in losses.values())
        and options.get("reduction") != "mean"
    ):
        used |= {"ld_alpha"}
    if not any(loss.sorts or loss.unpaired for loss in losses.values()):
        used |= {"wpo"}
    return used
