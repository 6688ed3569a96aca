"""The section loss_options."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from prefdag.own_losses.names import Value, check_own_options
from prefdag.runtime.types import NonNegative, Positive, strict


@strict
class LossOptions:
    """Parameters of the loss, shared by both tracks. Null: the default of the loss's paper, or off.

    `options.check_options` rejects an option that the loss does not use.
    """

    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] | None
    reduction: Literal["sum", "mean"] | None
    reference_free: bool | None
    f_divergence: Literal["forward_kl", "js", "alpha"] | None
    f_alpha: Annotated[float, Field(gt=0, lt=1)] | None
    ld_alpha: Annotated[float, Field(ge=0, le=1)] | None
    wpo: bool | None
    simpo_gamma: NonNegative | None
    discopop_tau: Positive | None
    sft_weight: NonNegative | None
    desirable_weight: Positive | None
    undesirable_weight: Positive | None
    own: Annotated[dict[str, Value], AfterValidator(check_own_options)] | None  # of losses in stages/losses.py
