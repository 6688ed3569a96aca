"""Reads formatted pairs, and the reference's cached log-probabilities of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import count_rows, read_batches, read_json, read_table, sha256
from prefdag.text.scoring.formatted import COLUMNS, FormattedPairs, Ids, LazyRows, joined, of_batch
from prefdag.text.scoring.logps import Pair, PairLogps, ResponseLogps, pair_logps
from prefdag.text.scoring.packing import Group

PART = 4096  # rows per part of `parts_of`


def read_split(pairs: Path, split: str) -> FormattedPairs:
    """The pairs of a split, as `format_pairs` wrote them, memory-mapped. Raises `DataError` if the split is empty."""
    return joined(parts_of(pairs, split))


def parts_of(pairs: Path, split: str) -> Iterator[FormattedPairs]:
    """The same in parts of `PART` rows, in memory."""
    path = pairs / f"{split}.parquet"
    if not count_rows(path):
        raise DataError(f"{path}: no pairs; raise format_pairs.max_pairs or the split's fraction")
    for batch in read_batches(path, PART, COLUMNS.names):
        try:
            yield of_batch(batch)
        except (KeyError, ValueError, pa.ArrowException) as error:
            raise DataError(f"{path}: not as format_pairs writes it ({error}); `dvc repro` makes it again") from None


def with_chosen(pairs: FormattedPairs) -> FormattedPairs:
    """The rows that have a chosen response. `format_pairs` leaves some in every split."""
    return pairs.take(np.flatnonzero(pairs.lengths[:, 1]))


def chosen_groups(pairs: FormattedPairs) -> Sequence[Group]:
    """Each prompt with its chosen response, which every row must have (`with_chosen`)."""
    return LazyRows(range(len(pairs)), lambda row: Group(pairs.part(row, 0), (pairs.part(row, 1),)))


def pair_rows(pairs: FormattedPairs, *, mismatched: bool = False) -> Sequence[Pair]:
    """Each prompt with its responses; with `mismatched`, also the chosen response (else the rejected one) of the next row."""

    def pair(row: int) -> Pair:
        prompt, chosen, rejected = (pairs.part(row, number) for number in range(3))
        other = either((row + 1) % len(pairs)) if mismatched else None
        return Pair(prompt, present(chosen), present(rejected), other)

    def present(response: Ids) -> Ids | None:
        return response if len(response) else None

    def either(row: int) -> Ids:
        return pairs.part(row, 1 if pairs.lengths[row, 1] else 2)

    return LazyRows(range(len(pairs)), pair)


def soft_labels(pairs: FormattedPairs) -> Tensor | None:
    """The rows' `preference`, float32 (rows,); None if all are 1."""
    values = torch.tensor(pairs.preference, dtype=torch.float32)
    return None if bool((values == 1).all()) else values


def presence(pairs: FormattedPairs) -> tuple[Tensor, Tensor] | None:
    """1.0 where a row has a chosen response, and where it has a rejected one, float32 (rows,) each; None if all have both."""
    chosen, rejected = torch.tensor(pairs.lengths[:, 1:] > 0, dtype=torch.float32).T.contiguous()
    return None if bool(chosen.all()) and bool(rejected.all()) else (chosen, rejected)


# Columns of ref_logps: log-probabilities of whole responses, and of the first tokens, as many as both responses have.
REF_COLUMNS = ("chosen_logps", "rejected_logps", "chosen_shared_logps", "rejected_shared_logps")


def ref_columns(logps: PairLogps) -> dict[str, Tensor]:
    """The reference's log-probabilities by `REF_COLUMNS`, (rows,) each."""
    chosen, rejected = logps.chosen, logps.rejected
    columns = (chosen.logps, rejected.logps, chosen.shared_logps, rejected.shared_logps)
    return dict(zip(REF_COLUMNS, columns, strict=True))


def reference_key(pairs: Path, reference: Path, dtype: str) -> dict[str, Any]:
    """Everything that the reference's log-probabilities depend on: not beta, the loss, the learning rate or the seed."""
    return {
        "pairs_sha256": sha256(pairs),
        "reference_sha256": sha256(reference),
        "dtype": dtype,
        "reduction": "sum over scored tokens, and over those within the shorter response's length",
    }


def read_ref_logps(folder: Path, split: str, ids: Sequence[str], pairs: Path, reference: Path) -> PairLogps:
    """The reference's log-probabilities of the rows of a split with these ids, in their order: float32, (rows,).

    Raises:
        DataError: they were computed from other pairs or by another model.
    """
    key = read_json(folder / "key.json")
    for name, value in reference_key(pairs, reference, key.get("dtype", "")).items():
        if key.get(name) != value:
            raise DataError(
                f"{folder / 'key.json'}: {name} is {key.get(name)}, the input's is {value}; run ref_logps again"
            )
    path = folder / f"{split}.parquet"
    logps = read_table(path, columns=["id", *REF_COLUMNS]).to_pandas()
    if logps["id"].tolist() != list(ids):
        raise DataError(
            f"{folder / split}.parquet: rows differ from those of {pairs / split}.parquet; run ref_logps again"
        )
    for name in REF_COLUMNS:
        if not np.isfinite(logps[name]).all():
            raise DataError(f"{path}: {name}: not finite; run ref_logps again")
    columns = (torch.tensor(logps[name].to_numpy(), dtype=torch.float32) for name in REF_COLUMNS)
    chosen, rejected, chosen_shared, rejected_shared = columns
    return PairLogps(ResponseLogps(chosen, chosen_shared), ResponseLogps(rejected, rejected_shared))


@torch.no_grad()
def check_ref_logps(
    cached: PairLogps, reference: nn.Module, pairs: Sequence[Pair], path: Path, tolerance: float
) -> None:
    """Recompute the first, the middle and the last row, and compare them with what `ref_logps` wrote to `path`.

    Args:
        cached: from `read_ref_logps`, in the order of `pairs`.
        tolerance: in nats.

    Raises:
        DataError: a row differs by more: the file, the dtype or the computation has changed.
    """
    rows = sorted({0, len(pairs) // 2, len(pairs) - 1})
    again = pair_logps(reference, [pairs[i] for i in rows])
    for side, old, new in (
        ("chosen", cached.chosen, again.chosen),
        ("rejected", cached.rejected, again.rejected),
    ):
        for row, expected, computed in zip(rows, old.logps[rows].tolist(), new.logps.tolist(), strict=True):
            if not abs(computed - expected) <= tolerance:
                raise DataError(
                    f"{path}: row {row}: {side}_logps: {expected:.4f}, but the reference gives {computed:.4f}; "
                    "run ref_logps again, with the dtype that the policy trains in"
                )
