"""The settings of one training run, for any model."""

import math
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from prefdag.runtime.types import Dtype, Fraction, NonNegative, Positive, PositiveInt, shape, strict


@strict
class StepDecay:
    """Multiplies the learning rate by `factor` every `epochs` epochs (StepLR)."""

    kind: Literal["step"]
    epochs: PositiveInt
    factor: Annotated[float, Field(gt=0, le=1)]


@strict
class Momentum:
    """An optimiser with momentum."""

    kind: Literal["sgd", "rmsprop"]
    momentum: Fraction


@strict
class Training:
    """One training run: linear warm-up, then `schedule`."""

    epochs: PositiveInt
    batch_size: PositiveInt  # rows per optimiser step, over all processes
    micro_batch_size: PositiveInt  # rows per forward pass
    optimizer: Annotated[  # AdamW: arXiv:1711.05101; 8 bits: arXiv:2110.02861
        Annotated[Literal["adamw", "adamw_8bit", "adam", "sgd", "rmsprop"], Tag("<name>")]
        | Annotated[Momentum, Tag("<mapping>")],
        Discriminator(shape),
    ]
    learning_rate: Positive
    weight_decay: NonNegative
    warmup_fraction: Fraction  # of all steps
    schedule: Annotated[
        Annotated[Literal["constant", "linear", "cosine"], Tag("<name>")] | Annotated[StepDecay, Tag("<mapping>")],
        Discriminator(shape),
    ]
    max_grad_norm: Positive
    precision: Dtype  # bfloat16: autocast; weights keep their dtype
    validate_every: Annotated[  # in optimiser steps, or as a share of all steps
        Annotated[PositiveInt, Tag("<steps>")] | Annotated[float, Field(gt=0, lt=1), Tag("<share>")],
        Discriminator(lambda value: "<share>" if isinstance(value, float) else "<steps>"),
    ]
    checkpoint_every: PositiveInt  # in optimiser steps

    def steps_between_validations(self, steps: int) -> int:
        """`validate_every` in optimiser steps, for a training of `steps` of them. A share is rounded up."""
        every = self.validate_every
        return every if isinstance(every, int) else math.ceil(every * steps)
