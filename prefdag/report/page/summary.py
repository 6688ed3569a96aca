"""The numbers that matter most: `reports/metrics.json` for `dvc exp show` and MLflow, and the five lines after `make repro`."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from prefdag.report.image.sentences import compared
from prefdag.report.page.numbers import Estimate, number, percent, percent_span, points
from prefdag.report.text import answers
from prefdag.report.text.sentences import is_paired

Metrics = Mapping[str, Any]
SHOWN = ("win_rate", "stopping_win_rate", "kl_to_reference", "tokens", "distinct")  # of each round


def main_metrics(
    text: Metrics,
    win_rate: Metrics,
    image: Metrics,
    findings: Mapping[str, int],
    rounds: Sequence[Mapping[Any, Any]] = (),
    reward_models: Mapping[str, Metrics | None] = MappingProxyType({}),
) -> dict[str, dict[str, Any]]:
    """A dozen metrics by track, named as trainers usually name them. An interval has the endings _low and _high.

    Args:
        text: from evaluate_text.
        win_rate: from judge_text, by kind of judge. Rates of different judges are not comparable, so the name has the kind.
        image: from evaluate_image.
        findings: number of findings about the health of the DPO run, by track.
        rounds: the rows of the table of rounds.
        reward_models: the figures of the reward model of each track; None if there is none.
    """
    heldout = text["heldout"]
    ranking = "rewards/accuracies" if is_paired(text) else "rewards/auc"
    accuracy = Estimate.of(heldout["rewards"], "accuracy")
    classified = Estimate.of(image["policy"], "accuracy")
    return {
        "text": {
            ranking: accuracy.value,
            f"{ranking}_low": accuracy.low,
            f"{ranking}_high": accuracy.high,
            "kl": heldout["kl"],
            "perplexity": heldout["policy"]["perplexity"],
            "perplexity_before": heldout["reference"]["perplexity"],
            **{f"win_rate_{judge}": rates["greedy"]["win_rate"] for judge, rates in win_rate.items()},
            "findings": findings["text"],
            **_reward_model(reward_models.get("text")),
        },
        "image": {
            "accuracy": classified.value,
            "accuracy_low": classified.low,
            "accuracy_high": classified.high,
            "accuracy_before": image["reference"]["accuracy"],
            "kl": image["kl"],
            "findings": findings["image"],
            **_reward_model(reward_models.get("image")),
        },
        **({"rounds": {str(row["round"]): _round(row) for row in rounds}} if rounds else {}),
    }


def _reward_model(figures: Metrics | None) -> Metrics:
    if figures is None:
        return {}
    names = ("accuracy", "accuracy_low", "accuracy_high", "calibration_error")
    return {f"reward_model_{name}": figures[name] for name in names}


def _round(row: Mapping[Any, Any]) -> Metrics:
    """Of a row of the table, what `dvc metrics show` shows: the numbers that there are."""
    return {name: row[name] for name in ("chosen", *SHOWN) if not math.isnan(row[name])}


def lines(text: Metrics, win_rate: Metrics, image: Metrics, report: str) -> list[str]:
    """What DPO changed, in five lines for a terminal. An interval that includes no change is called no significant difference.

    Args:
        win_rate: from judge_text, by kind of judge.
        report: the address of the report.
    """
    heldout, n_images = text["heldout"], image["n_test"]
    accuracy = Estimate.of(heldout["rewards"], "accuracy")
    change = Estimate.of(heldout["differences"]["policy_reference"], "difference")
    classified, against = Estimate.of(image["policy"], "accuracy"), image["policy_against_reference"]
    if is_paired(text):
        ranked, rows = "pairs ranked right", f"n = {number(heldout['n_pairs'])}"
    else:
        ranked = "responses ranked right"
        rows = f"n = {number(heldout['n_chosen'])} and {number(heldout['n_rejected'])}"
    chance = {"better": "better than chance", "unclear": "not significantly better than chance"}
    nats = {"better": "higher", "unclear": "no significant difference", "worse": "lower"}[change.against(0.0)]
    perplexity = [number(heldout[model]["perplexity"], 2) for model in ("reference", "policy")]
    shown = {
        f"Text, {ranked}": (
            f"50% before DPO (chance), {percent(accuracy.value)} after (95% interval {percent_span(accuracy)}, {rows}): "
            f"{chance.get(accuracy.against(0.5), 'worse than chance')}"
        ),
        "Text, answers": answers.effect(win_rate),
        "Text, KL and perplexity": (
            f"{number(heldout['kl'], 4)} nats per token from the reference; perplexity {perplexity[0]} before DPO, "
            f"{perplexity[1]} after: {nats}"
        ),
        "Images, accuracy": (
            f"{percent(image['reference']['accuracy'])} before DPO, {percent(classified.value)} after (95% interval "
            f"{percent_span(classified)}, n = {number(n_images)}); difference {points(against['difference'])} points: "
            f"{compared(against, 'reference')}"
        ),
        "Report": report,
    }
    width = max(map(len, shown))
    return [f"{title:<{width}}  {line}" for title, line in shown.items()]
