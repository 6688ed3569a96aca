"""Reward margins of two runs on one axis: a reward is beta times a log-ratio, so other betas mean other units."""

from collections.abc import Mapping
from typing import Any, NamedTuple

MARGIN = "rewards/margin"
OWN_SCALE = "orpo"  # its rewards are log odds, without beta
SCALING = ("beta", "loss", "loss_options")


class MarginScale(NamedTuple):
    """What the margins of the two runs are divided by, and what the quotient is."""

    betas: tuple[float, float]
    title: str


def margin_scale(first: Mapping[str, Any], second: Mapping[str, Any]) -> MarginScale:
    """The margins themselves if beta is the same in both, and otherwise what they have in common.

    Args:
        first: parameters with dotted keys, and so the second.
    """
    beta_a, beta_b = (1.0 if _losses(params) == {OWN_SCALE} else float(params["beta"]) for params in (first, second))
    if beta_a == beta_b:
        return MarginScale((1.0, 1.0), "Reward margin")
    if any(params.get("loss_options.f_divergence") or OWN_SCALE in _losses(params) for params in (first, second)):
        return MarginScale((beta_a, beta_b), "Reward margin / β")
    return MarginScale((beta_a, beta_b), "Reward margin / β: difference of the log-ratios, nats")


def same_scale(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether beta, the loss and its options are the same."""
    one, other = (
        {key: value for key, value in params.items() if key.split(".")[0] in SCALING} for params in (first, second)
    )
    return one == other


def _losses(params: Mapping[str, Any]) -> set[str]:
    """The names of the losses: of the only one, or those of a weighted sum."""
    only = params.get("loss")
    return {only} if only else {key.partition(".")[2] for key in params if key.startswith("loss.")}
