"""The results of the pipeline, read from its artefacts. Report and model card take all their numbers from here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from prefdag.health import verdict
from prefdag.lifecycle.errors import DataError
from prefdag.runtime import artifacts
from prefdag.runtime.artifacts import read_json, read_table, read_tensors

if TYPE_CHECKING:
    from prefdag.report.text.answers import Answers
    from prefdag.report.text.rounds import RoundsReport

SPLITS = ("train", "val", "test")
RESPONSES = ("chosen", "rejected", "chosen_truncated", "rejected_truncated")  # as the model has to write them
TEXT = ("id", "class", "true", "predicted")  # columns of names: text even if a name looks like a number or is "NA"
CSV: dict[str, Any] = {"dtype": dict.fromkeys(TEXT, "str"), "keep_default_na": False, "na_values": [""]}


@dataclass(frozen=True)
class Histories:
    """The histories of a training run, with the columns of history.csv and validation.csv.

    `history` has one row per optimiser step, `validation` one per validation.
    """

    history: pd.DataFrame
    validation: pd.DataFrame


@dataclass(frozen=True)
class TextTrack:
    """The language model.

    `pairs` has one row per held-out pair: its rewards and its conversation. `tokens` has one row per response of these pairs,
    as prefdag/text/evaluation/metrics.py writes it.
    """

    metrics: Mapping[str, Any]
    pairs: pd.DataFrame
    answers: "Answers"
    tokens: pd.DataFrame
    sft: Histories
    dpo: Histories
    health: verdict.Verdict


@dataclass(frozen=True)
class ImageTrack:
    """The classifier.

    `predictions` has one row per test image; its `index` is the position in `images`, uint8 (N, C, H, W). `by_class`,
    `confusion` and `calibration` have the columns that prefdag/image/evaluate.py writes.
    """

    metrics: Mapping[str, Any]
    predictions: pd.DataFrame
    by_class: pd.DataFrame
    confusion: pd.DataFrame
    calibration: pd.DataFrame
    images: np.ndarray
    classes: list[str]
    warmup: Histories
    dpo: Histories
    control: Histories
    health: verdict.Verdict


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset, and the results of the data gate."""

    rows: Mapping[str, int]  # by split
    expectations: Mapping[str, Any]  # results.json of the gate, by table
    offending: pd.DataFrame  # rows that fail an expectation
    gate: Mapping[str, Any]  # summary.json of the gate


@dataclass(frozen=True, kw_only=True)
class PairsDataset(Dataset):
    """Preference pairs, with statistics over all of them and the result of formatting."""

    shares: pd.DataFrame
    formatted: Mapping[str, Any]
    changes: pd.DataFrame
    examples: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class ImagesDataset(Dataset):
    """Labelled images, with the number that have a copy in another split."""

    straddling: Mapping[str, int]  # by kind of copy


@dataclass(frozen=True)
class Results:
    """Everything that the report shows.

    `hashes` has the SHA-256 of artefacts by path. `ref_logps` describes what the cached reference log-probabilities were
    computed from.
    """

    text: TextTrack
    image: ImageTrack
    pairs: PairsDataset
    images: ImagesDataset
    hashes: Mapping[str, str]
    ref_logps: Mapping[str, Any]
    rounds: "RoundsReport | None"  # None if none ran
    reward_models: Mapping[str, Mapping[str, Any] | None]  # the figures of each track's; None if there is none


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
    """The text track; `rows` is the tokenised test split, `messages` the validated pairs. Raises `DataError`."""
    rewards = read_csv(pairs)
    tokenised = read_table(rows, columns=["id", "preference", *RESPONSES]).to_pandas()
    conversations = read_table(messages, columns=["id", "source", "prompt"]).to_pandas()
    joined = rewards.merge(tokenised, on="id").merge(conversations, on="id")
    if len(joined) != len(rewards):
        raise DataError(f"{pairs}: {len(rewards) - len(joined)} ids are not in {rows} and {messages}; run `dvc repro`")
    return TextTrack(
        metrics=read_json(metrics),
        pairs=joined,
        answers=answers,
        tokens=read_tokens(tokens, joined),
        sft=read_histories(sft),
        dpo=read_histories(dpo),
        health=verdict.read(health),
    )


def read_tokens(path: Path, pairs: pd.DataFrame) -> pd.DataFrame:
    """The scored tokens of the responses. Raises `DataError` if a response of `pairs` has none."""
    if not path.exists():
        raise DataError(f"{path}: not found; `dvc repro` makes it")
    tokens = read_table(path).to_pandas()
    scored = set(zip(tokens["id"], tokens["side"], strict=True))
    for side in ("chosen", "rejected"):
        for name in pairs["id"][pairs[f"reward_{side}"].notna()]:
            if (name, side) not in scored:
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
    return ImageTrack(
        metrics=read_json(metrics),
        predictions=read_csv(predictions),
        by_class=read_csv(by_class),
        confusion=read_csv(confusion),
        calibration=read_csv(calibration),
        images=read_tensors(images / "images.safetensors", "numpy")["images"],
        classes=[str(name) for name in read_json(images / "classes.json")],
        warmup=read_histories(warmup),
        dpo=read_histories(dpo),
        control=read_histories(control),
        health=verdict.read(health),
    )


def read_pairs_dataset(pairs: Path, gate: Path, formatted: Path) -> PairsDataset:
    """The preference pairs and their splits. Raises `DataError`."""
    return PairsDataset(
        rows={split: len(read_table(pairs / f"{split}.parquet", columns=["id"])) for split in SPLITS},
        shares=read_csv(gate / "shares.csv"),
        formatted=read_json(formatted / "summary.json"),
        changes=read_csv(formatted / "changes.csv"),
        examples=read_json(formatted / "examples.json"),
        **_gate_results(gate),
    )


def read_images_dataset(image_pairs: Path, gate: Path) -> ImagesDataset:
    """The labelled images and their splits. Raises `DataError`."""
    split = read_table(image_pairs / "pairs.parquet", columns=["split"]).to_pandas()["split"]
    return ImagesDataset(
        rows={name: int((split == name).sum()) for name in SPLITS},
        straddling=read_json(image_pairs / "summary.json")["straddling"],
        **_gate_results(gate),
    )


def _gate_results(gate: Path) -> dict[str, Any]:
    """The files that the gate wrote, as fields of `Dataset`."""
    return {
        "expectations": read_json(gate / "results.json"),
        "offending": read_csv(gate / "offending.csv"),
        "gate": read_json(gate / "summary.json"),
    }


def read_histories(folder: Path) -> Histories:
    """The histories that a training stage wrote next to its model. Raises `DataError`."""
    return Histories(read_csv(folder / "history.csv"), read_csv(folder / "validation.csv"))


def read_csv(path: Path) -> pd.DataFrame:
    """A CSV file with a header, read with the options `CSV`. Raises `DataError` if it is missing or empty."""
    return artifacts.read_csv(path, **CSV)
