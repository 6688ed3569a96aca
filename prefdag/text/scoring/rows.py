"""Formatted pairs as groups to score, and the reference's log-probabilities that belong to them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from prefdag.runtime.artifacts import read_json, sha256
from prefdag.runtime.errors import DataError
from prefdag.text.scoring.logps import Pair, score_pairs
from prefdag.text.scoring.packing import Group

PART = 4096  # rows of `parts_of`


def read_split(pairs: Path, split: str) -> pd.DataFrame:
    """The pairs of a split, as `format_pairs` wrote them. Raises `DataError` where there are none."""
    return pd.concat(list(parts_of(pairs, split)), ignore_index=True)


def parts_of(pairs: Path, split: str) -> Iterator[pd.DataFrame]:
    """The same, `PART` rows at a time."""
    with pq.ParquetFile(pairs / f"{split}.parquet") as file:
        if not file.metadata.num_rows:
            raise DataError(f"{pairs / split}.parquet: no pairs; raise format_pairs.max_pairs or the split's fraction")
        for batch in file.iter_batches(PART):
            yield batch.to_pandas()


def chosen_groups(frame: pd.DataFrame) -> list[Group]:
    """Each prompt with its chosen response alone; a row without one is left out. `format_pairs` leaves no split without any."""
    responses = scored(frame, "chosen")
    return [Group(p.tolist(), (r,)) for p, r in zip(frame["prompt_ids"], responses, strict=True) if r]


def scored(frame: pd.DataFrame, side: str) -> list[list[int]]:
    """The scored tokens of each response: all of them, but for the EOS behind a cut. None of a response that is not there.

    A model must not learn to stop where `format_pairs.max_response_tokens` happened to end a response.
    """
    return [
        ids.tolist()[:-1] if cut else ids.tolist()
        for ids, cut in zip(frame[f"{side}_ids"], frame[f"{side}_truncated"], strict=True)
    ]


def pair_rows(frame: pd.DataFrame, *, mismatched: bool = False) -> list[Pair]:
    """Each prompt with its responses and, if asked for, the chosen response (else the rejected one) of the row below."""
    chosen, rejected = scored(frame, "chosen"), scored(frame, "rejected")
    below = [c or r for c, r in zip(chosen, rejected, strict=True)]
    other = [*below[1:], below[0]] if mismatched else [None] * len(below)
    prompts = [ids.tolist() for ids in frame["prompt_ids"]]
    return [Pair(p, c or None, r or None, o) for p, c, r, o in zip(prompts, chosen, rejected, other, strict=True)]


def soft_labels(frame: pd.DataFrame) -> dict[str, Tensor]:
    """The rows' `preference`, float32 (rows,), where a label is less than certain; nothing where all are 1."""
    values = torch.tensor(frame["preference"].to_numpy(), dtype=torch.float32)
    return {} if bool((values == 1).all()) else {"preference": values}


def presence(frame: pd.DataFrame) -> dict[str, Tensor]:
    """1.0 where a row has a chosen, and where it has a rejected response, float32 (rows,); nothing where all have both."""
    has = {
        f"has_{side}": torch.tensor(frame[f"{side}_ids"].map(len).to_numpy() > 0, dtype=torch.float32)
        for side in ("chosen", "rejected")
    }
    return {} if all(bool(values.all()) for values in has.values()) else has


# The columns of ref_logps: the log-probabilities of whole responses, and of the tokens that both responses of a pair have.
REF_COLUMNS = tuple(f"{side}{part}" for part in ("", "_shared") for side in ("chosen", "rejected"))


def reference_key(pairs: Path, reference: Path, dtype: str) -> dict[str, Any]:
    """What reference log-probabilities are a function of. Not beta, the loss, a learning rate or a seed."""
    return {
        "pairs_sha256": sha256(pairs),
        "reference_sha256": sha256(reference),
        "dtype": dtype,
        "reduction": "sum over scored tokens, and over those within the shorter response's length",
    }


def read_ref_logps(folder: Path, split: str, frame: pd.DataFrame, pairs: Path, reference: Path) -> dict[str, Tensor]:
    """The reference's log-probabilities of the rows of `frame` by `REF_COLUMNS`, float32 (rows,), in their order.

    Raises:
        DataError: they were computed from other pairs or another model.
    """
    found = read_json(folder / "key.json")
    for name, value in reference_key(pairs, reference, found.get("dtype", "")).items():
        if found.get(name) != value:
            raise DataError(
                f"{folder / 'key.json'}: {name} is {found.get(name)}, the input's is {value}; run ref_logps again"
            )
    logps = pd.read_parquet(folder / f"{split}.parquet")
    if logps["id"].tolist() != frame["id"].tolist():
        raise DataError(
            f"{folder / split}.parquet: rows differ from those of {pairs / split}.parquet; run ref_logps again"
        )
    return {name: torch.tensor(logps[f"{name}_logps"].to_numpy(), dtype=torch.float32) for name in REF_COLUMNS}


@torch.no_grad()
def check_ref_logps(
    cached: Mapping[str, Tensor], reference: nn.Module, pairs: Sequence[Pair], path: Path, tolerance: float
) -> None:
    """Score a few rows once more, the first, the middle and the last, against what `ref_logps` wrote to `path`.

    Args:
        cached: from `read_ref_logps`, in the order of `pairs`.
        tolerance: in nats.

    Raises:
        DataError: a row is off by more, as where the file, a dtype or the scoring itself has changed.
    """
    rows = sorted({0, len(pairs) // 2, len(pairs) - 1})
    found = score_pairs(reference, [pairs[i] for i in rows])
    for side in ("chosen", "rejected"):
        for row, said in zip(rows, found[side].tolist(), strict=True):
            if not abs(said - float(cached[side][row])) <= tolerance:
                raise DataError(
                    f"{path}: row {row}: {side}_logps: {float(cached[side][row]):.4f}, the reference says {said:.4f}; "
                    "run ref_logps again, with the dtype that the policy trains in"
                )
