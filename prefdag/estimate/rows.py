"""The lengths of the pairs: those that `format_pairs` wrote, or the longest that it would write.

A token's id does not matter here, so a sequence of n tokens is `range(n)`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import count_rows, read_batches
from prefdag.text.scoring.logps import Pair
from prefdag.text.scoring.packing import Group
from prefdag.train.optimizer import batch_order
from prefdag.train.task import split_evenly

if TYPE_CHECKING:
    from prefdag.config.format_pairs import FormatPairs
    from prefdag.config.training import Training

PAIRS = Path("data/pairs")
SPLITS = ("train", "val")
Rows = Mapping[str, Sequence[Pair]]  # by split


def read_rows(folder: Path = PAIRS) -> Rows:
    """The pairs in `folder`. Raises `DataError` if they are not there."""
    if not folder.is_dir():
        raise DataError(f"{folder}: not found; run `dvc repro format_pairs`, or give --pairs")
    return {split: list(_read(folder / f"{split}.parquet")) for split in SPLITS}


def _read(path: Path) -> Iterator[Pair]:
    for batch in read_batches(path, 4096) if count_rows(path) else ():
        lengths = {
            side: pc.list_value_length(batch[f"{side}_ids"]).to_pylist() for side in ("prompt", "chosen", "rejected")
        }
        cut = {side: batch[f"{side}_truncated"].to_pylist() for side in ("chosen", "rejected")}  # its end is not scored
        for i, prompt in enumerate(lengths["prompt"]):
            chosen, rejected = (lengths[side][i] - cut[side][i] for side in ("chosen", "rejected"))
            yield Pair(range(prompt), range(chosen) or None, range(rejected) or None)


def longest_rows(pairs: int, config: "FormatPairs") -> Rows:
    """This many pairs, in splits, each as long as `format_pairs` allows. `auto`: half of its limit is the prompt."""
    auto = config.max_auto_tokens // 2
    prompt, response = (auto if n == "auto" else n for n in (config.max_prompt_tokens, config.max_response_tokens))
    pair = Pair(range(prompt), range(response), range(response))
    val, test = (max(1, round(pairs * share)) for share in (config.val_fraction, config.test_fraction))
    return {"train": [pair] * max(1, pairs - val - test), "val": [pair] * val, "test": [pair] * test}


def groups(pairs: Sequence[Pair], *, mismatched: bool = False) -> list[Group]:
    """Each prompt with its responses; with `mismatched`, also one of another pair, here of its own."""
    return [
        group._replace(responses=(*group.responses, group.responses[0])) if mismatched else group
        for group in (pair.group for pair in pairs)
    ]


def chosen_groups(pairs: Sequence[Pair]) -> list[Group]:
    """Each prompt with its chosen response, if it has one."""
    return [Group(pair.prompt, (pair.chosen,)) for pair in pairs if pair.chosen]


def tokens(rows: Sequence[Group]) -> int:
    return sum(group.n_tokens for group in rows)


def largest_micro_batch(rows: Sequence[Group], training: "Training", seed: int, processes: int) -> list[Group]:
    """The micro-batch with the most tokens of the whole run, of any process."""
    parts = (
        part
        for _, step in batch_order(len(rows), training, seed)
        for first in range(min(processes, len(step)))
        for part in split_evenly(step[first::processes], training.micro_batch_size)
    )
    return [rows[i] for i in max(parts, key=lambda part: sum(rows[i].n_tokens for i in part))]
