"""The section validate_pairs: the formats of preference pairs, and their checks."""

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, ValidationError

from prefdag.config.levels import Level
from prefdag.lifecycle.errors import suggestion
from prefdag.runtime.types import Fraction, Positive, Text, strict

FormatName = Literal[
    "sharegpt",
    "axolotl",
    "openai",
    "argilla",
    "shp",
    "helpsteer3",
    "safe-rlhf",
    "arena",
    "versus",
    "pku",
    "plain",
    "alpaca",
    "orca",
    "messages",
    "hh-rlhf",
    "nectar",
    "ultrafeedback",
    "distilabel",
    "helpsteer2",
    "unpaired",
    "kto",
]
# The names that `columns` can give to fields of other names.
COLUMNS = (
    *("prompt", "chosen", "rejected", "completion", "label", "system", "history", "tools", "preference"),
    *("split", "source", "annotator", "score_chosen", "score_rejected"),
)

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
    score_order: Level
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


def _known(columns: dict[str, str | None]) -> dict[str, str | None]:
    """`columns`, if every name that has a path is one of `COLUMNS`."""
    for name, path in columns.items():
        if path is not None and name not in COLUMNS:
            names = ", ".join(COLUMNS)
            raise ValueError(f"unknown name '{name}'; {suggestion(name, COLUMNS, f'use {names}')}")
    return columns


@strict
class ValidatePairs:
    format: Literal["auto"] | FormatName
    columns: Annotated[dict[Text, Text | None], AfterValidator(_known)] | None  # null as a path leaves a column out
    score_scale: Positive | None
    levels: PairLevels
    shares: Annotated[dict[MeasureName, ShareLevels], AfterValidator(_complete)]
    similarity: Annotated[float, Field(gt=0, le=1)]  # of near duplicates
    max_dropped: Fraction  # share of all rows
