"""Keeps the answers of a round part by part, so that a killed stage goes on where it was."""

import logging
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from prefdag.distributed.process import process
from prefdag.runtime.artifacts import read_table, writing

log = logging.getLogger(__name__)


def sample_parts(
    folder: Path, prompts: pd.DataFrame, size: int, sample: Callable[[pd.DataFrame, str], pd.DataFrame]
) -> list[Path]:
    """Write the answers to all prompts to `folder`, one file for `size` prompts of similar length. Finished files stay.

    Processes share the work: each call of `sample` has as many files' prompts as there are processes. The first one writes,
    and only after all have sampled; so all of them find the same files at the start.

    Args:
        sample: given some of the prompts and a name for the progress bar, rows with their `id`.
    """
    shortest = prompts.iloc[prompts["prompt_ids"].map(len).argsort(kind="stable")]
    parts = {folder / f"{start}.parquet": shortest[start : start + size] for start in range(0, len(shortest), size)}
    missing = [path for path in parts if not path.exists()]
    done = sum(len(parts[path]) for path in parts if path not in missing)
    if done:
        log.info("continuing after %d of %d prompts", done, len(prompts))
    for start in range(0, len(missing), process().num_processes):
        group = missing[start : start + process().num_processes]
        asked = pd.concat([parts[path] for path in group])
        rows = sample(asked, f"prompts {done + 1} to {done + len(asked)} of {len(prompts)}")
        done += len(asked)
        for path in group:
            with writing(path) as temporary:
                rows[rows["id"].isin(parts[path]["id"])].to_parquet(temporary, index=False)
    return list(parts)


def read_parts(paths: list[Path], prompts: pd.DataFrame) -> pd.DataFrame:
    """The rows of all files, in the order of the prompts."""
    table = pd.concat([read_table(path).to_pandas() for path in paths], ignore_index=True)
    place = {key: number for number, key in enumerate(prompts["id"])}
    return table.iloc[table["id"].map(place).argsort(kind="stable")].reset_index(drop=True)
