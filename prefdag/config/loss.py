"""The key loss: a loss, or a weighted sum of losses."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from prefdag.runtime.types import Positive, shape

LossName = Literal[  # noqa: RUF041 - split to keep the lines short
    Literal["sigmoid", "robust", "exo", "hinge", "ipo", "discopop", "sppo", "nca", "apo_zero", "apo_down"],
    Literal["kto", "bco", "aot", "aot_unpaired", "cpo", "simpo", "orpo", "sft"],
]
# A name, or a weighted sum of losses.
Loss = Annotated[
    Annotated[LossName, Tag("<name>")] | Annotated[dict[LossName, Positive], Field(min_length=1), Tag("<mapping>")],
    Discriminator(shape),
]
