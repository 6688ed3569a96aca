"""The section validate_images: the checks of images."""

from typing import Annotated, Literal

from pydantic import Field

from prefdag.config.levels import Level
from prefdag.runtime.types import Fraction, strict


@strict
class ImageLevels:
    """What to do with an image that fails a check of this kind."""

    invalid: Literal["error", "drop"]  # such an image cannot be kept
    duplicate: Level
    near_duplicate: Level
    label: Level


@strict
class ValidateImages:
    format: Literal["auto", "mnist-csv", "image-folder", "cifar10"]
    levels: ImageLevels
    similarity: Annotated[float, Field(gt=0, le=1)]  # of near duplicates
    min_judge_accuracy: Annotated[float, Field(ge=0, le=1)]
    max_dropped: Fraction  # share of all images
    max_imbalance: Annotated[float, Field(ge=1)]  # size of the largest class over that of the smallest
