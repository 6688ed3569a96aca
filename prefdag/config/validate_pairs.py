"""The section validate_pairs: the checks of preference pairs."""

from typing import Annotated, Literal

from pydantic import Field

from prefdag.config.levels import Level
from prefdag.config.types import Fraction, strict


@strict
class PairLevels:
    """What is done about a row that fails an expectation of this kind."""

    invalid: Literal["error", "drop"]  # nothing can be kept of it
    duplicate: Level
    near_duplicate: Level
    conflict: Level
    encoding: Level
    contamination: Level


@strict
class ShareLevels:
    """From where on a share is listed, and from where on it stops the stage; null: never. See data/measures.py."""

    warn: Fraction | None
    error: Fraction | None


@strict
class PairShares:
    """The levels of each measure."""

    longer_preferred: ShareLevels
    disagreement: ShareLevels
    repeated_prompts: ShareLevels
    repeated_runs: ShareLevels
    other_scripts: ShareLevels
    largest_origin: ShareLevels


@strict
class ValidatePairs:
    format: Literal["auto", "sharegpt", "pku", "alpaca", "unpaired", "plain", "messages", "hh-rlhf"]
    levels: PairLevels
    shares: PairShares
    similarity: Annotated[float, Field(gt=0, le=1)]  # of near duplicates
    max_dropped: Fraction  # share of all rows
