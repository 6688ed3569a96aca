"""The section resnet_warmup."""

from typing import Literal

from prefdag.config.training import Training
from prefdag.runtime.types import Count, Fraction, strict


@strict
class ResnetWarmup:
    arch: Literal["resnet18", "resnet34", "resnet50"]
    stem: Literal["imagenet", "cifar"]
    dropout: Fraction
    max_shift: Count  # pixels
    flip: bool
    training: Training
    seed: Count
