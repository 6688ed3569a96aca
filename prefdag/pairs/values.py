"""The values in a record: text, numbers, labels, and the preference that some columns of a row give.

A value of the wrong kind raises `Fault` with its column, what is wrong, and what to do.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from prefdag.pairs.records import REPEATED, Fault


def needs_object(value: Any, column: str | None) -> dict[str, Any]:
    """`value`, if it is an object."""
    if not isinstance(value, dict):
        raise Fault(column, f"{kind(value)} where an object is needed")
    return value


def needs_text(value: Any, column: str | None) -> str:
    """`value`, if it is text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise Fault(column, f"{kind(value)} where text is needed")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # Bytes that are not UTF-8 also arrive here as surrogates; see `records.read_text`.
        where = f"character {error.start + 1}"
        raise Fault(column, f"bytes that are not UTF-8, or a lone surrogate, at {where}; save it as UTF-8") from None
    return value


def needs_number(value: Any, column: str) -> float:
    """`value` as a finite number. Text is converted, since CSV has nothing else."""
    if value is REPEATED or isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Fault(column, f"{kind(value)} where a number is needed; without the column every preference is 1")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Fault(column, "not a finite number; write one or leave the column out")
    return number


def needs_label(value: Any, column: str) -> bool:
    """`value` as true or false. It may be 1 or 0, and either may be text, as in CSV."""
    if isinstance(value, str):
        value = {"true": 1, "1": 1, "1.0": 1, "false": 0, "0": 0, "0.0": 0}.get(value.lower(), value)
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise Fault(column, f"{kind(value)} where true or false is needed; write true for a desirable completion")
    return bool(value)


def kind(value: Any) -> str:
    """A value's type in the user's words."""
    if value is REPEATED:
        return "a repeated key"
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def preference(row: Mapping[str, Any]) -> float:
    """The probability that chosen is preferred, from whichever of `PREFERENCE_COLUMNS` the row has; 1 without any."""
    present = [columns for columns in PREFERENCE_COLUMNS if any(column in row for column in columns)]
    if not present:
        return 1.0
    if len(present) > 1:
        raise Fault(present[1][0], f"the row has {present[0][0]} too; keep one of them")
    (columns,) = present
    for column in columns:
        if column not in row:
            raise Fault(column, f"missing; a row needs both {' and '.join(columns)}")
    return PREFERENCE_COLUMNS[columns](row, *columns)


def _from_probability(row: Mapping[str, Any], column: str) -> float:
    return needs_number(row[column], column)  # the gate checks its range


def _from_votes(row: Mapping[str, Any], chosen: str, rejected: str) -> float:
    votes = {column: needs_number(row[column], column) for column in (chosen, rejected)}
    for column, number in votes.items():
        if number < 0:
            raise Fault(column, f"{number:g} votes; write how many annotators preferred this response")
    total = sum(votes.values())
    if not total:
        raise Fault(chosen, "no votes for either response; remove the row or leave both columns out")
    return votes[chosen] / total


def _from_ratings(row: Mapping[str, Any], chosen: str, rejected: str) -> float:
    for column in (chosen, rejected):
        if not isinstance(row[column], list):
            raise Fault(column, f"{kind(row[column])} where a list of ratings is needed, one per annotator")
    if len(row[chosen]) != len(row[rejected]) or not row[chosen]:
        counts = f"{len(row[rejected])} ratings, but {len(row[chosen])} in {chosen}"
        raise Fault(rejected, f"{counts}; every annotator must rate both responses")
    ratings = (
        [needs_number(value, f"{column}[{i}]") for i, value in enumerate(row[column])] for column in (chosen, rejected)
    )
    return sum(0.5 if a == b else float(a > b) for a, b in zip(*ratings, strict=True)) / len(row[chosen])


PREFERENCE_COLUMNS: Mapping[tuple[str, ...], Callable[..., float]] = {
    ("preference",): _from_probability,
    ("votes_chosen", "votes_rejected"): _from_votes,
    ("ratings_chosen", "ratings_rejected"): _from_ratings,
}
