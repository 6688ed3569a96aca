"""The tables on the language model: cross-entropy, and multiple-choice accuracy."""

from collections.abc import Mapping
from typing import Any

from prefdag.report.page.numbers import Estimate

SETS = {
    "heldout": "Held-out chosen responses",
    "truthfulqa": "TruthfulQA form",
    "winogrande": "WinoGrande form, right filling",
    "winogrande_wrong": "WinoGrande form, wrong filling",
    "winogrande_sentence": "WinoGrande form, whole sentence",
    "pku": "Preference pairs, chosen",
}
CHOICES = {
    "TruthfulQA form, MC1": ("truthfulqa", "mc1"),
    "TruthfulQA form, MC2": ("truthfulqa", "mc2"),
    "WinoGrande form, accuracy": ("winogrande", "accuracy"),
}


def cross_entropy(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per set, in the order of SETS: the three models, and policy minus reference with its interval."""
    return [
        {
            "name": name,
            "change": Estimate.of(metrics[key]["differences"]["policy_reference"], "difference"),
            **metrics[key],
        }
        for key, name in SETS.items()
        if key in metrics
    ]


def choices(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per multiple-choice metric, in the order of CHOICES: the value of each model."""
    by_set = metrics["choices"]
    return [
        {
            "name": name,
            "n": by_set[key]["policy"]["n"],
            **{model: Estimate.of(by_set[key][model], measure) for model in ("base", "reference", "policy")},
        }
        for name, (key, measure) in CHOICES.items()
        if key in by_set
    ]
