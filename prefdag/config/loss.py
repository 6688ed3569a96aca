"""The key loss: a loss, or a weighted sum of losses."""

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Discriminator, Field, Tag

from prefdag.lifecycle.errors import suggestion
from prefdag.own_losses.names import OWN_LOSSES, own_losses
from prefdag.runtime.types import Positive, shape

LossName = Literal[  # noqa: RUF041 - split to keep the lines short
    Literal["sigmoid", "robust", "exo", "hinge", "ipo", "discopop", "sppo", "nca", "apo_zero", "apo_down"],
    Literal["kto", "bco", "aot", "aot_unpaired", "cpo", "simpo", "orpo", "sft"],
]


def _known(name: str) -> str:
    """`name`, if it is one of `LossName` or of the losses in stages/losses.py. Raises `ValueError`."""
    built_in = get_args(LossName)
    if name not in built_in and name not in (own := own_losses()):
        names = [*built_in, *own]
        remedy = suggestion(name, names, f"choose from {', '.join(names)}, or add it to {OWN_LOSSES}")
        raise ValueError(f"no loss '{name}'; {remedy}")
    return name


AnyLossName = Annotated[str, AfterValidator(_known)]
# A name, or a weighted sum of losses.
Loss = Annotated[
    Annotated[AnyLossName, Tag("<name>")]
    | Annotated[dict[AnyLossName, Positive], Field(min_length=1), Tag("<mapping>")],
    Discriminator(shape),
]
