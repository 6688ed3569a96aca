"""Splits without leaks: rows that belong together are in the same split."""

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from prefdag.lifecycle.errors import DataError, ParamsError

if TYPE_CHECKING:
    from prefdag.config.format_pairs import FormatPairs
    from prefdag.config.label_pairs import LabelPairs

SPLITS = ("train", "val", "test")
LEFT_OUT = (
    "left out"  # instead of a split: the row's prompt is also in a published split that goes before the row's own
)
Keys = npt.NDArray[np.uint64]


def digest(value: Any, seed: int = 0) -> int:
    """A 64-bit hash of a value and a seed. Another seed gives another order of the values."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{value!r}".encode()).digest()[:8])


def split_by_prompt(
    keys: Keys, val_fraction: float, test_fraction: float, published: npt.NDArray[np.str_] | None = None
) -> npt.NDArray[np.str_]:
    """The split of every row. Rows that share any key (see `group_rows`) are in the same split.

    A published split is kept: its rows, and unpublished rows that belong together with them. If a group has rows of several
    published splits, test goes before val and val before train, and the group's rows of the later ones are `LEFT_OUT`.
    A split that is not published is taken from the remaining rows by its fraction.

    Groups are assigned in the order of their smallest first key, not of their position, so that an added row moves few
    others, and digests with another seed give other splits. Split sizes are as close to the fractions as whole groups allow.

    Args:
        keys: digests, (rows, columns).
        published: the published split of each row, "" if it has none, (rows,). None: no row has one.

    Raises:
        DataError: train, or a split with a fraction above zero, would be empty.
    """
    _, group_of, sizes = np.unique(group_rows(keys), return_inverse=True, return_counts=True)
    published = np.full(len(keys), "") if published is None else published
    least = np.full(len(sizes), np.iinfo(np.uint64).max)
    np.minimum.at(least, group_of, keys[:, 0])
    split_of = np.full(len(sizes), "train")
    fixed = np.zeros(len(sizes), dtype=bool)
    for split in ("val", "test"):
        groups = np.unique(group_of[published == split])
        split_of[groups], fixed[groups] = split, True
    rest = int((~fixed[group_of]).sum())
    waiting = [group for group in np.argsort(least, kind="stable").tolist() if not fixed[group]]
    fractions = {"test": test_fraction, "val": val_fraction}
    wanted = {split: fraction for split, fraction in fractions.items() if split not in published}
    for split, fraction in wanted.items():
        missing, passed = fraction * rest, []
        for group in waiting:
            if abs(missing - sizes[group]) < abs(missing):
                missing -= sizes[group]
                split_of[group] = split
            else:
                passed.append(group)
        waiting = passed
    splits = split_of[group_of].astype("U8")
    splits[(published != "") & (published != splits) & fixed[group_of]] = LEFT_OUT
    if empty := empty_splits(splits, wanted.get("val", 0.0), wanted.get("test", 0.0)):
        counts = f"{len(keys)} pairs with {len(sizes)} distinct prompts leave {' and '.join(empty)} empty"
        kept = f" ({len(keys) - rest} are published as val or test)" if rest < len(keys) else ""
        raise DataError(f"data/validated/pairs.parquet: {counts}{kept}; add pairs or change the fractions")
    return splits


def group_rows(keys: Keys) -> npt.NDArray[np.intp]:
    """The group of each row. Rows are in one group if they share a key, or are linked through other rows.

    Keys in different columns never match. `[[7, 1], [8, 2], [7, 2]]` is one group.

    Args:
        keys: (rows, columns).
    """
    rows, columns = keys.shape
    # A graph in which each row is linked to one node per key.
    nodes = [np.unique(keys[:, column], return_inverse=True)[1] for column in range(columns)]
    firsts = np.cumsum([rows, *(node.max(initial=-1) + 1 for node in nodes)])
    linked = np.concatenate([node + first for node, first in zip(nodes, firsts, strict=False)])
    edges = (np.ones(len(linked), dtype=bool), (np.tile(np.arange(rows), columns), linked))
    return connected_components(coo_array(edges, shape=(firsts[-1], firsts[-1])), directed=False)[1][:rows]


def check_fractions(section: str, params: "FormatPairs | LabelPairs") -> None:
    """Check that something is left to train on. Raises `ParamsError`."""
    if params.val_fraction + params.test_fraction >= 1:
        raise ParamsError(f"params.yaml: {section}: val_fraction + test_fraction leave nothing to train on; lower them")


def empty_splits(splits: npt.NDArray[np.str_], val_fraction: float, test_fraction: float) -> list[str]:
    """The splits that should have rows but have none."""
    wanted = {"train": 1.0, "val": val_fraction, "test": test_fraction}
    return [split for split, fraction in wanted.items() if fraction > 0 and split not in splits]
