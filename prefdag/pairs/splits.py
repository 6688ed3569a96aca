"""Splits without leaks: rows that belong together share one."""

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from prefdag.runtime.errors import DataError, ParamsError

if TYPE_CHECKING:
    from prefdag.config.format_pairs import FormatPairs
    from prefdag.config.label_pairs import LabelPairs

SPLITS = ("train", "val", "test")
Keys = npt.NDArray[np.uint64]


def digest(value: Any, seed: int = 0) -> int:
    """64 bits that stand for a value; what is drawn by them is drawn anew with another seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{value!r}".encode()).digest()[:8])


def split_by_prompt(keys: Keys, val_fraction: float, test_fraction: float) -> npt.NDArray[np.str_]:
    """The split of every row; rows that share any key (see `group_rows`) share a split.

    Groups are dealt in the order of their least first key, not of their place: a row added to the data moves few others, and
    digests with another seed give other splits. Split sizes come as close to the fractions as whole groups allow.

    Args:
        keys: digests, (rows, places).

    Raises:
        DataError: a split with a fraction above zero, or train, would stay empty.
    """
    _, group_of, sizes = np.unique(group_rows(keys), return_inverse=True, return_counts=True)
    least = np.full(len(sizes), np.iinfo(np.uint64).max)
    np.minimum.at(least, group_of, keys[:, 0])
    waiting = np.argsort(least, kind="stable").tolist()
    split_of = np.full(len(sizes), "train")
    for split, fraction in (("test", test_fraction), ("val", val_fraction)):
        missing, passed = fraction * len(keys), []
        for group in waiting:
            if abs(missing - sizes[group]) < abs(missing):
                missing -= sizes[group]
                split_of[group] = split
            else:
                passed.append(group)
        waiting = passed
    splits = split_of[group_of]
    if empty := empty_splits(splits, val_fraction, test_fraction):
        found = f"{len(keys)} pairs with {len(sizes)} distinct prompts leave {' and '.join(empty)} empty"
        raise DataError(f"data/validated/pairs.parquet: {found}; give more pairs or change the fractions")
    return splits


def group_rows(keys: Keys) -> npt.NDArray[np.intp]:
    """A group number for each row, such that rows with a key in common, or linked through other rows, share it.

    Keys in different places of a row never match each other. `[[7, 1], [8, 2], [7, 2]]` is one group.

    Args:
        keys: (rows, places).
    """
    rows, places = keys.shape
    # Each row is linked to a node for each of its keys.
    nodes = [np.unique(keys[:, place], return_inverse=True)[1] for place in range(places)]
    firsts = np.cumsum([rows, *(node.max(initial=-1) + 1 for node in nodes)])
    linked = np.concatenate([node + first for node, first in zip(nodes, firsts, strict=False)])
    edges = (np.ones(len(linked), dtype=bool), (np.tile(np.arange(rows), places), linked))
    return connected_components(coo_array(edges, shape=(firsts[-1], firsts[-1])), directed=False)[1][:rows]


def check_fractions(section: str, params: "FormatPairs | LabelPairs") -> None:
    """That something is left to train on. Raises `ParamsError`."""
    if params.val_fraction + params.test_fraction >= 1:
        raise ParamsError(f"params.yaml: {section}: val_fraction + test_fraction leave nothing to train on; lower them")


def empty_splits(splits: npt.NDArray[np.str_], val_fraction: float, test_fraction: float) -> list[str]:
    """The splits that should have rows and have none."""
    wanted = {"train": 1.0, "val": val_fraction, "test": test_fraction}
    return [split for split, fraction in wanted.items() if fraction > 0 and split not in splits]
