"""The section validate_pairs: the checks of preference pairs."""

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, ValidationError

from prefdag.config.levels import Level
from prefdag.runtime.types import Fraction, strict

MeasureName = Literal[
    "longer_preferred", "disagreement", "repeated_prompts", "repeated_runs", "other_scripts", "largest_origin"
]


@strict
class PairLevels:
    """What to do with a row that fails a check of this kind."""

    invalid: Literal["error", "drop"]  # such a row cannot be kept
    duplicate: Level
    near_duplicate: Level
    conflict: Level
    encoding: Level
    contamination: Level


@strict
class ShareLevels:
    """The share above which a measure is listed, and the one above which it stops the stage; null: never.

    `MEASURES` in gate/measures.py says what each measure counts.
    """

    warn: Fraction | None
    error: Fraction | None


def _complete(shares: dict[MeasureName, ShareLevels]) -> dict[MeasureName, ShareLevels]:
    """`shares`, if it has every measure. The error has the form of a section's missing key."""
    missing = [name for name in get_args(MeasureName) if name not in shares]
    if missing:
        raise ValidationError.from_exception_data(
            "shares", [{"type": "missing", "loc": (name,), "input": shares} for name in missing]
        )
    return shares


@strict
class ValidatePairs:
    format: Literal["auto", "sharegpt", "pku", "alpaca", "unpaired", "plain", "messages", "hh-rlhf"]
    levels: PairLevels
    shares: Annotated[dict[MeasureName, ShareLevels], AfterValidator(_complete)]
    similarity: Annotated[float, Field(gt=0, le=1)]  # of near duplicates
    max_dropped: Fraction  # share of all rows
