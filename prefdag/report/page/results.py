"""What the pipeline found, read from its artefacts: the one place where report and model card get their numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from prefdag.health import verdict
from prefdag.runtime import artifacts
from prefdag.runtime.artifacts import read_json
from prefdag.runtime.errors import DataError

if TYPE_CHECKING:
    from prefdag.report.text.answers import Answers

SPLITS = ("train", "val", "test")
TEXT = ("id", "class", "true", "predicted")  # columns of names, also where one looks like a number or says "NA"
CSV: dict[str, Any] = {"dtype": dict.fromkeys(TEXT, "str"), "keep_default_na": False, "na_values": [""]}


@dataclass(frozen=True)
class Run:
    """A training run: one row an optimiser step, one row a validation. Columns as in history.csv and validation.csv."""

    history: pd.DataFrame
    validation: pd.DataFrame


@dataclass(frozen=True)
class TextTrack:
    """The language model. `pairs` has one row a held-out pair: its rewards, and the conversation they were given for.

    `tokens` has one row a response of them, as prefdag/text/evaluation/metrics.py writes it.
    """

    metrics: Mapping[str, Any]
    pairs: pd.DataFrame
    answers: "Answers"
    tokens: pd.DataFrame
    sft: Run
    dpo: Run
    health: verdict.Verdict


@dataclass(frozen=True)
class ImageTrack:
    """The classifier. `predictions` has one row a test image; `images` is uint8 (N, C, H, W), indexed by its `index`.

    `by_class`, `confusion` and `calibration` have the columns that prefdag/image/evaluate.py writes.
    """

    metrics: Mapping[str, Any]
    predictions: pd.DataFrame
    by_class: pd.DataFrame
    confusion: pd.DataFrame
    calibration: pd.DataFrame
    images: np.ndarray
    classes: list[str]
    warmup: Run
    dpo: Run
    control: Run
    health: verdict.Verdict


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What went in, and what the gate said of it."""

    rows: Mapping[str, int]  # by split
    expectations: Mapping[str, Any]  # results.json of the gate: by table
    offending: pd.DataFrame  # rows that fail one
    gate: Mapping[str, Any]  # its summary.json


@dataclass(frozen=True, kw_only=True)
class PairsDataset(Dataset):
    """Preference pairs: also what they are like as a whole, and what formatting made of them."""

    shares: pd.DataFrame
    formatted: Mapping[str, Any]
    changes: pd.DataFrame
    examples: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class ImagesDataset(Dataset):
    """Labelled images: also how many have a copy in another split."""

    straddling: Mapping[str, int]  # by kind of copy


@dataclass(frozen=True)
class Results:
    """All that the report shows. `hashes` names artefacts by path; `ref_logps` is what the cached reference log-probabilities
    were computed from."""

    text: TextTrack
    image: ImageTrack
    pairs: PairsDataset
    images: ImagesDataset
    hashes: Mapping[str, str]
    ref_logps: Mapping[str, Any]


def read_text(
    *,
    metrics: Path,
    pairs: Path,
    answers: "Answers",
    tokens: Path,
    rows: Path,
    messages: Path,
    sft: Path,
    dpo: Path,
    health: Path,
) -> TextTrack:
    """The text track; `rows` is the test split as tokenised, `messages` the validated pairs. Raises `DataError`."""
    rewards = read_csv(pairs)
    tokenised = pd.read_parquet(rows, columns=["id", "preference", "chosen_truncated", "rejected_truncated"])
    conversations = pd.read_parquet(messages, columns=["id", "source", "prompt", "chosen", "rejected"])
    joined = rewards.merge(tokenised, on="id").merge(conversations, on="id")
    if len(joined) != len(rewards):
        raise DataError(f"{pairs}: {len(rewards) - len(joined)} ids are not in {rows} and {messages}; run `dvc repro`")
    return TextTrack(
        metrics=read_json(metrics),
        pairs=joined,
        answers=answers,
        tokens=read_tokens(tokens, joined),
        sft=read_run(sft),
        dpo=read_run(dpo),
        health=verdict.read(health),
    )


def read_tokens(path: Path, pairs: pd.DataFrame) -> pd.DataFrame:
    """The scored tokens of every response of `pairs`. Raises `DataError` where they are of others."""
    if not path.exists():
        raise DataError(f"{path}: not found; `dvc repro` makes it")
    tokens = pd.read_parquet(path)
    there = set(zip(tokens["id"], tokens["side"], strict=True))
    for side in ("chosen", "rejected"):
        for name in pairs["id"][pairs[f"reward_{side}"].notna()]:
            if (name, side) not in there:
                raise DataError(f"{path}: no {side} response of pair {name}; run `dvc repro`")
    return tokens


def read_image(
    *,
    metrics: Path,
    predictions: Path,
    by_class: Path,
    confusion: Path,
    calibration: Path,
    images: Path,
    warmup: Path,
    dpo: Path,
    control: Path,
    health: Path,
) -> ImageTrack:
    """The image track; `images` is the folder of validated images. Raises `DataError`."""
    from safetensors.numpy import load_file

    return ImageTrack(
        metrics=read_json(metrics),
        predictions=read_csv(predictions),
        by_class=read_csv(by_class),
        confusion=read_csv(confusion),
        calibration=read_csv(calibration),
        images=load_file(images / "images.safetensors")["images"],
        classes=[str(name) for name in read_json(images / "classes.json")],
        warmup=read_run(warmup),
        dpo=read_run(dpo),
        control=read_run(control),
        health=verdict.read(health),
    )


def read_pairs_dataset(pairs: Path, gate: Path, formatted: Path) -> PairsDataset:
    """The preference pairs as they were split. Raises `DataError`."""
    return PairsDataset(
        rows={split: len(pd.read_parquet(pairs / f"{split}.parquet", columns=["id"])) for split in SPLITS},
        shares=read_csv(gate / "shares.csv"),
        formatted=read_json(formatted / "summary.json"),
        changes=read_csv(formatted / "changes.csv"),
        examples=read_json(formatted / "examples.json"),
        **_said(gate),
    )


def read_images_dataset(image_pairs: Path, gate: Path) -> ImagesDataset:
    """The labelled images as they were split. Raises `DataError`."""
    split = pd.read_parquet(image_pairs / "pairs.parquet", columns=["split"])["split"]
    return ImagesDataset(
        rows={name: int((split == name).sum()) for name in SPLITS},
        straddling=read_json(image_pairs / "summary.json")["straddling"],
        **_said(gate),
    )


def _said(gate: Path) -> dict[str, Any]:
    """What a stage of the gate left in its folder."""
    return {
        "expectations": read_json(gate / "results.json"),
        "offending": read_csv(gate / "offending.csv"),
        "gate": read_json(gate / "summary.json"),
    }


def read_run(folder: Path) -> Run:
    """The histories that a training stage left beside its model. Raises `DataError`."""
    return Run(read_csv(folder / "history.csv"), read_csv(folder / "validation.csv"))


def read_csv(path: Path) -> pd.DataFrame:
    """A CSV file with a header; see `CSV`. Raises `DataError` if it is absent or empty."""
    return artifacts.read_csv(path, **CSV)
