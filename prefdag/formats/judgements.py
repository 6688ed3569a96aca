"""How sure a preference is: the columns of a row that say so, and scores of its responses."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from prefdag.formats.faults import Fault
from prefdag.formats.values import finite

if TYPE_CHECKING:
    from prefdag.formats.fields import Field, Row

Scores = tuple[float, float]  # of chosen and of rejected; the higher, the better


def preference(row: "Row") -> float | None:
    """The probability that chosen is preferred, from whichever of `PREFERENCE_COLUMNS` the row has; None without any."""
    present = [columns for columns in PREFERENCE_COLUMNS if any(column in row for column in columns)]
    if not present:
        return None
    if len(present) > 1:
        raise Fault(present[1][0], f"the row has {present[0][0]} too; keep one of them")
    (columns,) = present
    for column in columns:
        if column not in row:
            raise Fault(column, f"missing; a row needs both {' and '.join(columns)}")
    return PREFERENCE_COLUMNS[columns](*(row[column] for column in columns))


def scores(row: "Row") -> Scores | None:
    """The scores of chosen and rejected, from the first of `SCORE_COLUMNS` that the row has; None without any."""
    for columns in SCORE_COLUMNS:
        if all(row.has(column) for column in columns):
            values = [finite(row[column].value) for column in columns]
            if values[0] is not None and values[1] is not None:  # texts and lists are listed as not read
                for column in columns:
                    row[column].take()
                return values[0], values[1]
    return None


def unreadable_score(row: "Row") -> "Field | None":
    """The first score that is no number, in columns that have both scores."""
    for columns in SCORE_COLUMNS:
        if all(row.has(column) for column in columns):
            return next((row[column] for column in columns if finite(row[column].value) is None), None)
    return None


def _from_probability(field: "Field") -> float:
    return field.number()  # the gate checks its range


def _from_votes(chosen: "Field", rejected: "Field") -> float:
    votes = {field.path: field.number() for field in (chosen, rejected)}
    for column, number in votes.items():
        if number < 0:
            raise Fault(column, f"{number:g} votes; write how many annotators preferred this response")
    total = sum(votes.values())
    if not total:
        raise Fault(chosen.path, "no votes for either response; remove the row or leave both columns out")
    return votes[chosen.path] / total


def _from_ratings(chosen: "Field", rejected: "Field") -> float:
    ours, theirs = (field.items("ratings, one per annotator,") for field in (chosen, rejected))
    if len(ours) != len(theirs) or not ours:
        counts = f"{len(theirs)} ratings, but {len(ours)} in {chosen.path}"
        raise Fault(rejected.path, f"{counts}; every annotator must rate both responses")
    pairs = [(a.number(), b.number()) for a, b in zip(ours, theirs, strict=True)]
    return sum(0.5 if a == b else float(a > b) for a, b in pairs) / len(pairs)


PREFERENCE_COLUMNS: Mapping[tuple[str, ...], Callable[..., float]] = {
    ("preference",): _from_probability,
    ("votes_chosen", "votes_rejected"): _from_votes,
    ("ratings_chosen", "ratings_rejected"): _from_ratings,
}
# score_chosen, chosen_score and chosen-score, and the same for ratings and rewards.
SCORE_COLUMNS = tuple(
    (name.format("chosen"), name.format("rejected"))
    for word in ("score", "rating", "avg_rating", "reward")
    for name in (f"{word}_{{}}", f"{{}}_{word}", f"{{}}-{word}")
)
