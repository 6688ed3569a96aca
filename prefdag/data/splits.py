"""Splits without leaks: rows that belong together share one."""

import hashlib
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from prefdag.config import FormatPairs, LabelPairs
from prefdag.errors import DataError, ParamsError

SPLITS = ("train", "val", "test")


def split_by_prompt(
    keys: Sequence[Sequence[Hashable]], val_fraction: float, test_fraction: float, seed: int
) -> list[str]:
    """The split of every row; rows that share any key (see `group_rows`) share a split.

    Groups are dealt in an order drawn from their first key and the seed, not from their place: a row added to the data
    moves few others. Split sizes come as close to the fractions as whole groups allow.

    Raises:
        DataError: a split with a fraction above zero, or train, would stay empty.
    """
    groups: dict[int, list[int]] = {}
    for row, group in enumerate(group_rows(keys)):
        groups.setdefault(group, []).append(row)

    def drawn(group: int) -> str:
        name = min(repr(keys[row][0]) for row in groups[group])
        return hashlib.sha256(f"{seed}\n{name}".encode()).hexdigest()

    splits = ["train"] * len(keys)
    waiting = sorted(groups, key=drawn)
    for split, fraction in (("test", test_fraction), ("val", val_fraction)):
        missing = fraction * len(keys)
        for group in list(waiting):
            rows = groups[group]
            if abs(missing - len(rows)) < abs(missing):
                missing -= len(rows)
                waiting.remove(group)
                for row in rows:
                    splits[row] = split
    if empty := empty_splits(splits, val_fraction, test_fraction):
        found = f"{len(keys)} pairs with {len(groups)} distinct prompts leave {' and '.join(empty)} empty"
        raise DataError(f"data/validated/pairs.parquet: {found}; give more pairs or change the fractions")
    return splits


def group_rows(keys: Iterable[Sequence[Hashable]]) -> list[int]:
    """A group number for each row, such that rows with a key in common, or linked through other rows, share it.

    Keys in different places of a row never match each other. `[("a", 1), ("b", 2), ("a", 2)]` is one group.
    """
    parent: list[int] = []
    owner: dict[tuple[int, Hashable], int] = {}

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for row, places in enumerate(keys):
        parent.append(row)
        for place in enumerate(places):
            first, second = sorted((root(row), root(owner.setdefault(place, row))))
            parent[second] = first
    return [root(row) for row in range(len(parent))]


def check_fractions(section: str, params: FormatPairs | LabelPairs) -> None:
    """That something is left to train on. Raises `ParamsError`."""
    if params.val_fraction + params.test_fraction >= 1:
        raise ParamsError(f"params.yaml: {section}: val_fraction + test_fraction leave nothing to train on; lower them")


def empty_splits(splits: Sequence[str] | np.ndarray, val_fraction: float, test_fraction: float) -> list[str]:
    """The splits that should have rows and have none."""
    wanted = {"train": 1.0, "val": val_fraction, "test": test_fraction}
    return [split for split, fraction in wanted.items() if fraction > 0 and split not in splits]
