"""Pairs: preference rows to tokenised rows, labelled images to pairs of classes, and both into splits without leaks."""

import hashlib
import logging
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from prefdag.config import FormatPairs, LabelPairs
from prefdag.data.chat import ChatTokenizer, Encoded
from prefdag.data.inspection import Change, boundary_joins, changes, examples, leaked
from prefdag.data.wording import normalised
from prefdag.errors import DataError, ParamsError

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")

IDS = pa.list_(pa.int32())
PAIRS_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "source": pa.string(),  # "FILE:ROW"
        "prompt": pa.string(),  # in its template, whole
        "chosen": pa.string(),  # null where there is no such response, its ids empty: unpaired rows have one of the two
        "rejected": pa.string(),
        "preference": pa.float64(),  # probability that chosen is preferred
        "prompt_ids": IDS,
        "chosen_ids": IDS,  # ends with EOS, which is not scored where the response was cut
        "rejected_ids": IDS,
        "chosen_truncated": pa.bool_(),
        "rejected_truncated": pa.bool_(),
    }
)
NO_RESPONSE = Encoded([], "", 0)  # a response that there is has an EOS at least
IMAGE_PAIRS_SCHEMA = pa.schema({"index": pa.int64(), "split": pa.string(), "y_w": pa.int64(), "y_l": pa.int64()})


class Formatted(NamedTuple):
    """Pairs ready for training, and what people may want to know of them."""

    splits: dict[str, pa.Table]  # PAIRS_SCHEMA, rows in their first order
    summary: dict[str, Any]
    changes: list[Change]
    examples: list[dict[str, Any]]


def format_rows(table: pa.Table, tokenizer: ChatTokenizer, params: FormatPairs) -> Formatted:
    """Validated pairs in their splits.

    A pair whose responses become the same tokens by the cut says nothing (its loss is ln 2, its gradient 0), nor does a
    response of which nothing is left: such a row is left out and listed.

    Raises:
        DataError: the template refuses a dialogue, too many rows are left out, there are too few prompts for the splits, or
            one of these has no chosen or no rejected response.
        ParamsError: the fractions leave nothing to train on.
    """
    _check_fractions("format_pairs", params)
    changed: list[Change] = []
    distinct = []
    rows = table.slice(0, params.max_pairs).to_pylist()
    for row in rows:
        encoded = encode_pair(row, tokenizer, params.max_prompt_tokens, params.max_response_tokens)
        found = changes(row, encoded, tokenizer)
        changed += found
        if not any(each.change == "left out" for each in found):
            distinct.append(encoded)
    if lost := len(rows) - len(distinct):
        first = next(each for each in changed if each.change == "left out")
        message = f"{lost} of {len(rows)} pairs are left out, the first: {first.source}:{first.column}: {first.reason}"
        if lost > params.max_left_out * len(rows):
            raise DataError(f"{message}; raise format_pairs.max_response_tokens, or max_left_out")
        logger.warning("%s", message)
    # The text as it was written, and the tokens that the cut leaves of it: what the model reads must not leak either.
    keys = [(normalised(row["prompt"].text), tuple(row["prompt"].ids)) for row in distinct]
    splits = split_by_prompt(keys, params.val_fraction, params.test_fraction, params.seed)
    by_split = {name: [row for row, split in zip(distinct, splits, strict=True) if split == name] for name in SPLITS}
    for name, part in by_split.items():
        _check_sides(name, part)
    tables = {name: pa.Table.from_pylist([_columns(row) for row in by_split[name]], PAIRS_SCHEMA) for name in SPLITS}
    summary = {
        "template": params.template,
        "max_prompt_tokens": params.max_prompt_tokens,
        "max_response_tokens": params.max_response_tokens,
        "rows": {name: len(by_split[name]) for name in SPLITS},
        "prompts": {name: len({row["prompt"].text for row in by_split[name]}) for name in SPLITS},
        "changes": _counted(changed),
        "leaked": leaked(tables),
        "boundary": boundary_joins(distinct, tokenizer),
        **{
            part: _lengths([row[part] for row in distinct if row[part].ids])
            for part in ("prompt", "chosen", "rejected")
        },
    }
    return Formatted(tables, summary, changed, examples(distinct, tokenizer))


def _counted(changed: Sequence[Change]) -> list[dict[str, Any]]:
    """How many rows each kind of change concerns."""
    counts = Counter((each.change, each.column) for each in changed)
    return [{"change": change, "column": column, "rows": rows} for (change, column), rows in sorted(counts.items())]


def encode_pair(
    row: dict[str, Any], tokenizer: ChatTokenizer, max_prompt_tokens: int, max_response_tokens: int
) -> dict[str, Any]:
    """A validated row with `Encoded` in place of its prompt, chosen and rejected. Raises `DataError`, naming the row."""
    try:
        return row | {
            "prompt": tokenizer.prompt(row["prompt"], max_prompt_tokens),
            **{
                side: NO_RESPONSE if row[side] is None else tokenizer.response(row[side], max_response_tokens)
                for side in ("chosen", "rejected")
            },
        }
    except DataError as error:
        raise DataError(f"{row['source']}: {error}") from None


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
    if empty := _empty_splits(splits, val_fraction, test_fraction):
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


def label_pairs(labels: np.ndarray, n_classes: int, params: LabelPairs) -> pa.Table:
    """Pairs of classes for images: y_w is the label, y_l one of the other classes, each as likely.

    Args:
        labels: int64 (N,), from 0 to n_classes - 1.

    Returns:
        `IMAGE_PAIRS_SCHEMA`, ordered by index. Splits are stratified: every class has the same shares. `max_images` are
        dealt to the classes in turn.

    Raises:
        DataError: there is one class, or a split stays empty.
        ParamsError: the fractions leave nothing to train on.
    """
    _check_fractions("label_pairs", params)
    if n_classes < 2:
        raise DataError("data/validated/images: one class only; a pair needs a second class to reject")
    rng = np.random.default_rng(params.seed)
    y_l = (labels + rng.integers(1, n_classes, len(labels))) % n_classes
    rank = _rank_in_class(labels, rng.permutation(len(labels)))
    kept = np.sort(np.lexsort((labels, rank))[: params.max_images])  # all firsts of their class, all seconds, ...
    # In the order of an image's place in its class, from 0 to 1, any stretch holds the classes in their proportions:
    # the first `test_fraction` of all is test, the next `val_fraction` val.
    place = (rank[kept] + 0.5) / np.bincount(labels[kept])[labels[kept]]
    order = np.lexsort((labels[kept], place))
    n_test, n_val = (round(fraction * len(kept)) for fraction in (params.test_fraction, params.val_fraction))
    split = np.full(len(kept), "train")
    split[order[n_test : n_test + n_val]] = "val"
    split[order[:n_test]] = "test"
    if empty := _empty_splits(split, params.val_fraction, params.test_fraction):
        found = f"{len(kept)} images of {n_classes} classes leave {' and '.join(empty)} empty"
        raise DataError(f"data/validated/images: {found}; use more images or change the fractions")
    return pa.table([kept, split.tolist(), labels[kept], y_l[kept]], IMAGE_PAIRS_SCHEMA)


def _check_fractions(section: str, params: FormatPairs | LabelPairs) -> None:
    if params.val_fraction + params.test_fraction >= 1:
        raise ParamsError(f"params.yaml: {section}: val_fraction + test_fraction leave nothing to train on; lower them")


def _check_sides(split: str, rows: Sequence[dict[str, Any]]) -> None:
    """That a split with rows has responses of either kind: to learn from, to validate on, to compare. Raises `DataError`."""
    for side, kind in (("chosen", "desirable"), ("rejected", "undesirable")):
        if rows and not any(row[side].ids for row in rows):
            raise DataError(
                f"data/validated/pairs.parquet: column {side}: no {kind} response among the {len(rows)} rows of split {split}; "
                "give more of them, or change the fractions or the seed of format_pairs"
            )


def _empty_splits(splits: Sequence[str] | np.ndarray, val_fraction: float, test_fraction: float) -> list[str]:
    """The splits that should have rows and have none."""
    wanted = {"train": 1.0, "val": val_fraction, "test": test_fraction}
    return [split for split, fraction in wanted.items() if fraction > 0 and split not in splits]


def _rank_in_class(labels: np.ndarray, order: np.ndarray) -> np.ndarray:
    """For each image, how many of its class come before it in `order` (a permutation)."""
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    return rank


def _columns(row: dict[str, Any]) -> dict[str, Any]:
    """An encoded row as `PAIRS_SCHEMA` wants it."""
    parts: dict[str, Encoded] = {part: row[part] for part in ("prompt", "chosen", "rejected")}
    return (
        {name: row[name] for name in ("id", "source", "preference")}
        | {part: encoded.text if encoded.ids else None for part, encoded in parts.items()}
        | {f"{part}_ids": encoded.ids for part, encoded in parts.items()}
        | {f"{part}_truncated": parts[part].truncated for part in ("chosen", "rejected")}
    )


def _lengths(parts: Sequence[Encoded]) -> dict[str, float]:
    """Tokens kept, the share of parts that were cut, and quantiles of the lengths before the cut."""
    lengths = [part.length for part in parts]
    return {
        "tokens": sum(len(part.ids) for part in parts),
        "truncated": round(sum(part.truncated for part in parts) / len(parts), 4),
        **{f"length_p{p}": int(np.percentile(lengths, p, method="inverted_cdf")) for p in (10, 50, 90, 100)},
    }
