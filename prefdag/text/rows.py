"""Formatted pairs as groups to score, and the reference's log-probabilities that belong to them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from prefdag.artifacts import read_json, sha256
from prefdag.config import FormatPairs
from prefdag.data.chat import ChatTokenizer
from prefdag.data.evals import EvalRow, encode_row
from prefdag.errors import DataError
from prefdag.text.packing import Group


def read_split(pairs: Path, split: str) -> pd.DataFrame:
    """The pairs of a split, as `format_pairs` wrote them. Raises `DataError` where there are none."""
    frame = pd.read_parquet(pairs / f"{split}.parquet")
    if frame.empty:
        raise DataError(f"{pairs / split}.parquet: no pairs; raise format_pairs.max_pairs or the split's fraction")
    return frame


def pair_groups(frame: pd.DataFrame) -> list[Group]:
    """Each prompt with its chosen and its rejected response."""
    chosen, rejected = scored(frame, "chosen"), scored(frame, "rejected")
    return [
        Group(p.tolist(), pair) for p, pair in zip(frame["prompt_ids"], zip(chosen, rejected, strict=True), strict=True)
    ]


def chosen_groups(frame: pd.DataFrame) -> list[Group]:
    """Each prompt with its chosen response alone."""
    return [Group(p.tolist(), (r,)) for p, r in zip(frame["prompt_ids"], scored(frame, "chosen"), strict=True)]


def scored(frame: pd.DataFrame, side: str) -> list[list[int]]:
    """The scored tokens of each response: all of them, but for the EOS behind a cut.

    A model must not learn to stop where `format_pairs.max_response_tokens` happened to end a response.
    """
    return [
        ids.tolist()[:-1] if cut else ids.tolist()
        for ids, cut in zip(frame[f"{side}_ids"], frame[f"{side}_truncated"], strict=True)
    ]


def eval_groups(rows: Sequence[EvalRow], tokenizer: ChatTokenizer, limits: FormatPairs) -> list[Group]:
    """Each question of an eval set with its right response, cut as the pairs are."""
    groups = []
    for row in rows:
        encoded = encode_row(row, tokenizer, limits.max_prompt_tokens, limits.max_response_tokens)
        response = encoded.response_ids if encoded.eos_scored else encoded.response_ids[:-1]
        groups.append(Group(encoded.prompt_ids, (response,)))
    return groups


def reference_key(pairs: Path, reference: Path, dtype: str) -> dict[str, Any]:
    """What reference log-probabilities are a function of. Not beta, the loss, a learning rate or a seed."""
    return {
        "pairs_sha256": sha256(pairs),
        "reference_sha256": sha256(reference),
        "dtype": dtype,
        "reduction": "sum over scored tokens",
    }


def read_ref_logps(folder: Path, split: str, frame: pd.DataFrame, pairs: Path, reference: Path) -> pd.DataFrame:
    """The reference's chosen_logps and rejected_logps of the rows of `frame`, float64, in their order.

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
    return logps
