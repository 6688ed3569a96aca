"""Made-up results of experiments for tests of their comparison, in memory and as the output files of a run."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from report_inputs import HOSTILE, history
from safetensors.numpy import save

from prefdag.image import evaluate
from prefdag.report.compare import comparison
from prefdag.report.compare.experiments import Experiment, Files
from prefdag.report.page.results import Histories
from prefdag.stats.rewards import reward_metrics
from prefdag.text.evaluation.choices import truthfulqa_metrics, winogrande_metrics
from prefdag.text.evaluation.metrics import set_metrics
from prefdag.text.scoring.packing import Group

IDS = [f"{i:016x}" for i in range(40)]
SOURCES = [f"evals.csv:{i}" for i in range(1, 13)]
CLASSES = ["cat", HOSTILE]


def text_tables(rng: np.random.Generator, better: float) -> dict[str, Any]:
    """Rewards, log-probabilities and answers of one run, and the metrics that the evaluation computes from them."""
    chosen, rejected = rng.normal(better, 1, 40), rng.normal(0, 1, 40)
    preference = np.ones(40)
    pairs = pd.DataFrame({"id": IDS, "reward_chosen": chosen, "reward_rejected": rejected, "margin": chosen - rejected})
    lengths = {"heldout": np.arange(3, 43), "truthfulqa": np.arange(2, 14), "winogrande": np.arange(5, 17)}
    names = {"heldout": IDS, "truthfulqa": SOURCES, "winogrande": SOURCES}
    metrics, rows = {}, []
    for name, tokens in lengths.items():
        logps = {model: -tokens * rng.uniform(1, 3, len(tokens)) for model in ("base", "reference", "policy")}
        groups = [Group((1,), (tuple(range(n)),)) for n in tokens]
        metrics[name] = set_metrics(logps, groups)
        frame = {"set": name, "row": names[name], "n_tokens": tokens}
        rows.append(pd.DataFrame(frame | {f"{model}_logps": values for model, values in logps.items()}))
    rewards = reward_metrics(torch.tensor(chosen), torch.tensor(rejected), torch.tensor(preference))
    metrics["heldout"] |= {"n_pairs": 40, "kl": float(rng.uniform(0.01, 0.05)), "rewards": rewards}
    picked = [
        pd.DataFrame(
            {
                "set": "truthfulqa",
                "model": m,
                "source": SOURCES,
                "mc1": rng.uniform(size=12) < 0.5,
                "mc2": rng.uniform(size=12),
            }
        )
        for m in ("base", "reference", "policy")
    ]
    filled = [
        pd.DataFrame({"set": "winogrande", "model": m, "source": SOURCES, "correct": rng.uniform(size=12) < 0.5})
        for m in ("base", "reference", "policy")
    ]
    metrics["choices"] = {
        "truthfulqa": {t["model"][0]: truthfulqa_metrics(t) for t in picked},
        "winogrande": {t["model"][0]: winogrande_metrics(t) for t in filled},
    }
    return {
        "pairs": pairs.assign(preference=preference),
        "rows": pd.concat(rows),
        "choices": pd.concat([*picked, *filled]),
        "metrics": metrics,
    }


def image_tables(rng: np.random.Generator, accuracy: float) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Predictions of one run on 60 images of two classes, and the metrics that the evaluation computes from them."""
    label = np.arange(60) % 2
    predicted = {model: np.where(rng.uniform(size=60) < accuracy, label, 1 - label) for model in evaluate.MODELS}
    probability = {f"{model}_probability": rng.uniform(0.1, 1, 60) for model in evaluate.MODELS}
    table = pd.DataFrame({"index": np.arange(100, 160), "label": label, **predicted, **probability})
    metrics: dict[str, Any] = {"kl": float(rng.uniform()), "n_test": 60}
    for model in evaluate.MODELS:
        nats = -np.log(probability[f"{model}_probability"]).mean()
        shares = evaluate.share_right(table[model] == table["label"])
        metrics[model] = {**shares, "cross_entropy": float(nats), "calibration_error": 0.05}
    return table, metrics | {"rewards": {"accuracy": 0.9, "margin": 1.5}}


class Kept:
    """An in-memory file system with a few files, at a made-up commit."""

    repo = SimpleNamespace(get_rev=lambda: "c0ffee" * 7)

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def open(self, path: str, mode: str) -> Any:
        if path not in self.files:
            raise FileNotFoundError(path)
        return io.BytesIO(self.files[path])


def stored() -> dict[str, bytes]:
    """The data that the page shows: conversations and images."""
    messages = pd.DataFrame({"id": IDS, "source": "a.json:1", "prompt": HOSTILE, "chosen": "Yes.", "rejected": HOSTILE})
    images = np.zeros((200, 1, 4, 4), np.uint8)
    return {
        "data/validated/pairs.parquet": messages.to_parquet(),
        "data/validated/images/images.safetensors": save({"images": images}),
        "data/validated/images/classes.json": json.dumps(CLASSES).encode(),
    }


def experiment(name: str, seed: int, better: float = 0.5, **params: Any) -> Experiment:
    rng = np.random.default_rng(seed)
    text = text_tables(rng, better)
    predictions, image = image_tables(rng, 0.5 + better / 4)
    outputs = dict.fromkeys(comparison.INPUTS, "0" * 32)
    outputs |= {"models/dpo_text": f"{seed:032}", "models/dpo_image": f"{seed:032}"}
    return Experiment(
        name=name,
        params={"beta": 0.1, "loss": "sigmoid", "seed": 0, "report.text_examples": 4, "report.image_examples": 6}
        | params,
        outputs=outputs,
        metrics={"text": text.pop("metrics"), "image": image},
        predictions=predictions,
        text=Histories(*history(rng, 20, 5, dpo=True)),
        image=Histories(*history(rng, 20, 5, dpo=True)),
        files=Files(name, Kept(stored())),
        **text,
    )


OUTS = [
    *("data/raw/evals", "data/pairs", "data/validated/pairs.parquet", "data/validated/images"),
    *("models/dpo_text", "models/policy", "models/dpo_image", "reports/image/predictions.csv"),
    *(f"reports/text/{name}" for name in ("pairs.csv", "rows.parquet", "choices.parquet")),
]


def write_run(beta: float) -> None:
    """The outputs of a run with this beta, in the current directory, as the stages lay them out."""
    run = experiment("", round(10 * beta))
    for folder in {str(Path(path).parent) for path in OUTS} | {
        "models/dpo_text",
        "models/policy",
        "models/dpo_image",
        "data/pairs",
    }:
        Path(folder).mkdir(parents=True, exist_ok=True)
    for path, content in stored().items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content)
    Path("data/raw/evals").mkdir(parents=True, exist_ok=True)
    Path("data/raw/evals/evals.csv").write_text("a")
    run.pairs[["id", "preference"]].to_parquet("data/pairs/test.parquet")
    run.pairs.drop(columns="preference").to_csv("reports/text/pairs.csv", index=False)
    run.rows.to_parquet("reports/text/rows.parquet")
    run.choices.to_parquet("reports/text/choices.parquet")
    run.predictions.to_csv("reports/image/predictions.csv", index=False)
    for folder, trained in (
        ("models/dpo_text", run.text),
        ("models/policy", run.text),
        ("models/dpo_image", run.image),
    ):
        trained.history.to_csv(f"{folder}/history.csv", index=False)
        trained.validation.to_csv(f"{folder}/validation.csv", index=False)
    for track in ("text", "image"):
        Path(f"reports/{track}/metrics.json").write_text(json.dumps(run.metrics[track]))
