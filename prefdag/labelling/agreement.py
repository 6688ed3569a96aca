"""How far people agree on what they compared. Imports no torch."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefdag.labelling.labels import Label


def summary(counted: Mapping[tuple[str, str], "Label"], ids: Iterable[str]) -> dict[str, Any]:
    """Counts of people and labels, and how far two people agree where both compared.

    `agreement` is the share of agreeing pairs of people, the mean over the comparisons with several people, `compared_twice`.
    `kappa` is what is left of it beyond chance, 1 for full agreement and 0 for none beyond chance: Fleiss' kappa (1971), with
    the chance that two labels of all of those are equal. Both are missing if they are not defined.

    Args:
        counted: the label of each person on each comparison.
        ids: of the comparisons.
    """
    wanted = set(ids)
    own = [label for label in counted.values() if label.id in wanted]
    by_id: dict[str, Counter[str]] = {}
    for label in own:
        if label.outcome != "skip":
            by_id.setdefault(label.id, Counter())[label.outcome] += 1
    several = [votes for votes in by_id.values() if votes.total() > 1]
    found: dict[str, Any] = {
        "people": len({label.annotator for label in own}),
        "comparisons": len(wanted),
        "labels": len(own),
        "ties": sum(label.outcome == "tie" for label in own),
        "skipped": sum(label.outcome == "skip" for label in own),
        "compared_twice": len(several),
    }
    if several:
        each = [sum(n * (n - 1) for n in votes.values()) / (votes.total() * (votes.total() - 1)) for votes in several]
        found["agreement"] = sum(each) / len(each)
        every = sum(several, Counter[str]())
        chance = sum((n / every.total()) ** 2 for n in every.values())
        if chance < 1:
            found["kappa"] = (found["agreement"] - chance) / (1 - chance)
    return found
