"""Which options a loss uses: no parameter is silently ignored."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prefdag.dpo.losses import EXTRAS, LOSSES
from prefdag.runtime.errors import ParamsError

if TYPE_CHECKING:
    from prefdag.config.loss import LossName


def check_options(terms: Mapping["LossName", float], options: Mapping[str, Any]) -> None:
    """That the losses of a sum go together and use every option that is set. Raises `ParamsError`."""
    losses = {name: LOSSES[name] for name in terms if name != "sft"}
    if not losses:
        raise ParamsError("params.yaml: loss: 'sft' learns no preference; take it in a sum: {sigmoid: 1.0, sft: 1.0}")
    kinds = {loss.score: name for name, loss in losses.items()}
    if len(kinds) > 1:
        (a, first), (b, second) = list(kinds.items())[:2]
        raise ParamsError(
            f"params.yaml: loss: '{first}' scores by {a}, '{second}' by {b}; a sum has one kind of reward"
        )
    if "sft" in terms and ("orpo" in terms or "cpo" in terms):
        raise ParamsError("params.yaml: loss: orpo and cpo have a term sft of their own; set loss_options.sft_weight")
    used = used_options(terms, options)
    for key in options:
        if key not in used:
            others = f" with {', '.join(k for k in options if k != key)}" if len(options) > 1 else ""
            name = " + ".join(f"'{name}'" for name in terms)
            raise ParamsError(f"params.yaml: loss_options.{key}: loss {name}{others} does not use it; set it to null")
    if "exo" in terms and options.get("label_smoothing") == 0:
        raise ParamsError(
            "params.yaml: loss_options.label_smoothing: loss 'exo' is infinite at 0; set it to 0.001, or null"
        )


def used_options(terms: Mapping["LossName", float], options: Mapping[str, Any]) -> set[str]:
    """The options that a loss, or a sum of losses, uses beside those that are set."""
    losses = {name: LOSSES[name] for name in terms if name != "sft"}
    used = {key for loss in losses.values() for key in loss.keywords} - set(EXTRAS)
    # KTO's estimate of the KL is one of whole responses: their log-ratios alone can be held against it.
    whole = all("kl" not in loss.keywords for loss in losses.values())
    if whole and all(loss.score == "logratios" for loss in losses.values()):
        used |= {"reduction", "reference_free"}
    if all(loss.of_margin for loss in losses.values()) and not options.get("reference_free"):
        used |= {"f_divergence"}
    if options.get("f_divergence") == "alpha":
        used |= {"f_alpha"}
    if (
        whole
        and all(loss.score in ("logratios", "logps") for loss in losses.values())
        and options.get("reduction") != "mean"
    ):
        used |= {"ld_alpha"}
    if not any(loss.sorts or loss.unpaired for loss in losses.values()):
        used |= {"wpo"}
    return used
