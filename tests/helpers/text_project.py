"""A project of the text track: pairs in three splits and a tiny model."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from tiny_models import lora, random_groups, training, write_model

from prefdag.config.dpo_text import DpoText, TextReference
from prefdag.text.scoring.formatted import FormattedPairs, of_batch
from stages import dpo_text

EOS = 0
SPLITS = ("train", "val", "test")


def frame_of(n: int, seed: int = 0) -> pd.DataFrame:
    """Pairs as `format_pairs` writes them; every third chosen and every second rejected response was cut."""
    groups = random_groups(n, 2, seed)
    chosen, rejected = ([np.array([*g.responses[side], EOS]) for g in groups] for side in (0, 1))
    return pd.DataFrame(
        {
            "id": [f"{seed}-{i}" for i in range(n)],
            "prompt_ids": [np.array(g.prompt) for g in groups],
            "chosen_ids": chosen,
            "rejected_ids": rejected,
            "chosen_truncated": [i % 3 == 0 for i in range(n)],
            "rejected_truncated": [i % 2 == 0 for i in range(n)],
            "preference": 1.0,
        }
    )


def pairs_of(frame: pd.DataFrame) -> FormattedPairs:
    """The pairs of a frame as those of a file."""
    return of_batch(pa.RecordBatch.from_pandas(frame))


def write_text_project(root: Path, kind: str) -> None:
    dpo_text.PAIRS.mkdir(parents=True)
    for seed, split in enumerate(SPLITS):
        frame_of(8, seed).to_parquet(dpo_text.PAIRS / f"{split}.parquet")
    # The adapters' targets are looked up by the folder's name.
    write_model(root / kind, kind).rename(root / dpo_text.REFERENCE)


def dpo_settings(**changes: Any) -> DpoText:
    return DpoText(
        adapter=lora(rank=4, alpha=8),
        reference=TextReference(logps="cached", update="none", alpha=None, every=None),
        training=training(**{"epochs": 10, "micro_batch_size": 2} | changes),
        gradient_checkpointing=False,
        shard="none",
        load_dtype="float32",
    )
