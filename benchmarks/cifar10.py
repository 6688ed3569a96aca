"""DPO against cross-entropy on CIFAR-10: the pipeline's own image stages, once per seed and arm.

    python benchmarks/cifar10.py run FOLDER_OF_TARS WORK_FOLDER     hours on one core; continues where it stopped
    python benchmarks/cifar10.py table                                the table of docs/cifar10.md

FOLDER_OF_TARS holds tars of images as SPLIT/CLASS/NAME, which are merged and split again. The seed determines the split, the
warm-up, the order of the data and the negatives. Every arm starts at its seed's reference and takes the same number of
gradient steps. Its learning rate is the one with the lowest cross-entropy on the first seed's validation split. The test split
is used once, at the end.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from benchmarks.harness import append, run_or_table
from prefdag.runtime.artifacts import read_json, sha256
from prefdag.stats.intervals import mean

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("cifar10.csv")
PAGE = ROOT / "docs" / "cifar10.md"
SEEDS = (0, 1, 2)

FROZEN = {"update": "none", "alpha": None, "every": None}
POLYAK = {"update": "polyak", "alpha": 0.001, "every": None}
COPY = {"update": "copy", "alpha": None, "every": None}


@dataclass(frozen=True)
class Arm:
    """One way to continue training from the reference."""

    name: str
    stage: str
    rates: tuple[float, ...]  # tried on the first seed's validation split
    settings: Mapping[str, Any]


# DPO needs smaller steps than cross-entropy: at 1e-5 its validation cross-entropy more than tripled.
ARMS = [Arm("cross-entropy", "control_image", (1e-5, 1e-4), {})] + [
    Arm(
        f"DPO, {name} reference, {negatives} negatives",
        "dpo_image",
        (1e-6, 1e-5),
        {"reference": reference, "negatives": negatives},
    )
    for name, reference in (("frozen", FROZEN), ("polyak", POLYAK), ("copied", COPY))
    for negatives in ("random", "hard")
]
TRAINING = {
    "batch_size": 32,
    "micro_batch_size": 32,
    "optimizer": "adamw",
    "weight_decay": 0.0,
    "warmup_fraction": 0.05,
    "schedule": "cosine",
    "max_grad_norm": 10.0,
    "precision": "float32",
    "validate_every": 1000,
    "checkpoint_every": 200,
}
WARMUP = TRAINING | {
    "epochs": 10,
    "learning_rate": 1e-3,
    "weight_decay": 1e-2,
    "batch_size": 64,
    "micro_batch_size": 64,
}
EPOCHS = 3


def parameters(images: Path, seed: int, arm: Arm | None = None, rate: float = 1e-5) -> dict[str, Any]:
    """The project's params.yaml with the changes of this study."""
    tree: dict[str, Any] = YAML(typ="safe").load((ROOT / "params.yaml").read_text("utf-8"))
    augmentation = {"max_shift": 4, "flip": True}
    tree["seed"] = seed
    tree["download_images"]["source"] = {"kind": "path", "path": str(images.resolve()), "sha256": sha256(images)}
    tree["validate_images"]["format"] = "image-folder"
    tree["label_pairs"] |= {"val_fraction": 0.1, "test_fraction": 2 / 7, "seed": seed}
    tree["resnet_warmup"] |= {**augmentation, "training": WARMUP, "seed": seed}
    training = TRAINING | {"epochs": EPOCHS, "learning_rate": rate}
    tree["dpo_image"] |= {**augmentation, "training": training, **(arm.settings if arm else {})}
    return tree


def collect(tars: Path, folder: Path) -> None:
    """Unpack the images of all tars as `folder`/CLASS/SPLIT-NAME."""
    for path in sorted(tars.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isreg() and (stream := archive.extractfile(member)):
                    split, label, name = Path(member.name).parts[-3:]
                    (folder / label).mkdir(parents=True, exist_ok=True)
                    (folder / label / f"{split}-{name}").write_bytes(stream.read())


def stage(folder: Path, name: str, tree: Mapping[str, Any]) -> None:
    """Run a stage of the pipeline in `folder`, on one core."""
    with (folder / "params.yaml").open("w", encoding="utf-8") as stream:
        YAML().dump(dict(tree), stream)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DVC_ROOT": str(folder), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", f"stages.{name}"], cwd=folder, env=environment, check=True)


def run(tars: Path, work: Path) -> None:
    """Run everything that is not in `RESULTS` yet."""
    from prefdag.image.classify import predict
    from prefdag.image.data import load_splits
    from prefdag.image.model import load

    def measure(folder: Path, model: str) -> dict[str, Any]:
        """Accuracy and cross-entropy of a model in `folder` on its seed's validation and test splits."""
        splits = load_splits(folder / "data/validated/images", folder / "data/image_pairs")
        metrics: dict[str, Any] = {}
        for split in ("val", "test"):
            logps = predict(load(folder / "models" / model)[0], splits[split].images)
            truth = splits[split].y_w
            metrics |= {
                f"{split}_n": len(truth),
                f"{split}_accuracy": float((logps.argmax(1) == truth).float().mean()),
                f"{split}_cross_entropy": -float(logps.gather(1, truth[:, None]).double().mean()),
            }
        return metrics

    images = work / "images"
    if not images.exists():
        collect(tars, images)
    rates: dict[str, float] = {}
    for seed in SEEDS:
        folder = (work / f"seed-{seed}").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for code in ("prefdag", "stages", "dvc.yaml"):
            if not (folder / code).exists():
                (folder / code).symlink_to(ROOT / code)
        if not (folder / "dag").exists():
            shutil.copytree(ROOT / "dag", folder / "dag", ignore=shutil.ignore_patterns("dvc.lock"))
        tree = parameters(images, seed)
        for name, made in (
            ("hash_code", "data/code"),
            ("download_images", "data/raw/images"),
            ("download_resnet", "models/resnet_base"),
            ("validate_images", "data/validated/images"),
            ("label_pairs", "data/image_pairs"),
            ("resnet_warmup", "models/resnet_reference"),
        ):
            if not (folder / made).exists():
                stage(folder, name, tree)
        if not have(seed, "reference", 0.0):
            reference = measure(folder, "resnet_reference")
            append(RESULTS, {"seed": seed, "arm": "reference", "learning_rate": 0.0, **reference}, COLUMNS)
        for arm in ARMS:
            for rate in arm.rates if seed == SEEDS[0] else (rates[arm.name],):
                if not have(seed, arm.name, rate):
                    shutil.rmtree(folder / "models" / arm.stage, ignore_errors=True)
                    stage(folder, arm.stage, parameters(images, seed, arm, rate))
                    health = folder / "reports" / "image" / "health.json"
                    if arm.stage == "dpo_image":
                        stage(folder, "health_image", parameters(images, seed, arm, rate))
                    else:
                        health.unlink(missing_ok=True)
                    findings = [f["name"] for f in read_json(health)["findings"]] if health.exists() else []
                    append(
                        RESULTS,
                        {
                            "seed": seed,
                            "arm": arm.name,
                            "learning_rate": rate,
                            **measure(folder, arm.stage),
                            "likelihood_displacement": int("likelihood_displacement" in findings),
                        },
                        COLUMNS,
                    )
            rates[arm.name] = chosen_rate(arm.name)


COLUMNS = ["seed", "arm", "learning_rate"]
COLUMNS += [f"{split}_{what}" for split in ("val", "test") for what in ("n", "accuracy", "cross_entropy")]
COLUMNS += ["likelihood_displacement"]


def results() -> pd.DataFrame:
    """All results so far."""
    return pd.read_csv(RESULTS, keep_default_na=False) if RESULTS.exists() else pd.DataFrame(columns=COLUMNS)


def have(seed: int, arm: str, rate: float) -> bool:
    """Whether this run is in the results."""
    rows = results()
    return bool(((rows["seed"] == seed) & (rows["arm"] == arm) & (rows["learning_rate"] == rate)).any())


def chosen_rate(arm: str) -> float:
    """The learning rate with the lowest cross-entropy on the first seed's validation split."""
    rows = results()
    mine = rows[(rows["arm"] == arm) & (rows["seed"] == SEEDS[0])]
    return float(mine.sort_values("val_cross_entropy").iloc[0]["learning_rate"])


def table() -> str:
    """The results as a table: means over seeds with 95% t intervals, and each arm's difference from its seed's control."""
    rows = results()
    control = rows[rows["arm"] == "cross-entropy"]
    control = control[control["learning_rate"] == chosen_rate("cross-entropy")].set_index("seed")["test_accuracy"]
    lines = [
        "| arm | learning rate | test accuracy | points above cross-entropy | test cross-entropy |",
        "|---|---|---|---|---|",
    ]
    for name in ["reference", *(arm.name for arm in ARMS)]:
        rate = 0.0 if name == "reference" else chosen_rate(name)
        mine = rows[(rows["arm"] == name) & (rows["learning_rate"] == rate)].set_index("seed")
        difference = (mine["test_accuracy"] - control).dropna()
        cells = [
            name,
            f"{rate:g}" if rate else "",
            spread(100 * mine["test_accuracy"], "%", 1),
            "" if name == "cross-entropy" else spread(100 * difference, "", 1, sign=True),
            spread(mine["test_cross_entropy"], "", 3),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: pd.Series, unit: str, digits: int, *, sign: bool = False) -> str:
    """Mean and 95% interval over seeds."""
    low, high = mean(values.tolist())
    plus = "+" if sign else ""
    return f"{values.mean():{plus}.{digits}f}{unit} ({low:{plus}.{digits}f} to {high:{plus}.{digits}f})"


if __name__ == "__main__":
    run_or_table(__doc__ or "", run, table, "tars", "work")
