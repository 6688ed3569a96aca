"""What reference and policy answer, as report and model card show it: figures, the win rate, answers side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from prefdag.report.page import phrases as words
from prefdag.report.page.phrases import Estimate
from prefdag.runtime.artifacts import read_json

DECODINGS = ("greedy", "sampled")
MODELS = ("reference", "policy")
SHARES = {"ended": "ended by themselves", "repetition": "repetition (seq-rep-4)", "refused": "open as a refusal"}
JUDGES = {
    "implicit": "the policy’s own implicit reward",
    "reward_model": "a reward model",
    "endpoint": "a model behind an endpoint",
}
OUTCOMES = {"win": "the policy’s", "loss": "the reference’s", "tie": "neither", "unread": "unreadable"}


@dataclass(frozen=True)
class Answers:
    """Answers to held-out prompts, a row each, what they are like on the whole, and which were judged the better ones."""

    rows: pd.DataFrame
    statistics: Mapping[str, Any]
    verdicts: pd.DataFrame
    win_rate: Mapping[str, Any]  # by the kind of judge: one


def read_answers(*, rows: Path, statistics: Path, verdicts: Path, win_rate: Path) -> Answers:
    """What stages answer_text and judge_text wrote. Raises `DataError`."""
    return Answers(pd.read_parquet(rows), read_json(statistics), pd.read_parquet(verdicts), read_json(win_rate))


def view(answers: Answers, count: int) -> dict[str, Any]:
    """What the section shows: `statistics`, a row a measure and decoding; `wins`, a row a decoding; `examples`."""
    (kind,) = answers.win_rate
    return {
        "n": answers.statistics["n_prompts"],
        "statistics": statistics(answers.statistics),
        "judge": JUDGES[kind],
        "partial": kind == "implicit",
        "wins": wins(answers.win_rate),
        "examples": examples(answers, count),
    }


def statistics(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a decoding and measure: the two means and policy minus reference, as they are printed."""
    table = []
    for decoding in DECODINGS:
        part = found[decoding]
        means = {model: Estimate.of(part[model], "tokens") for model in MODELS}
        change = Estimate.of(part["differences"]["tokens"], "difference")
        cells = {
            m: (words.number(e.value, 1), f"{words.number(e.low, 1)}{words.DASH}{words.number(e.high, 1)}")
            for m, e in means.items()
        }
        shown = [("tokens", cells, (words.signed(change.value, 1), words.signed_span(change, 1)))]
        for measure, name in SHARES.items():
            means = {model: Estimate.of(part[model], measure) for model in MODELS}
            change = Estimate.of(part["differences"][measure], "difference")
            points = (words.points(change.value), f"{words.points(change.low)} to {words.points(change.high)} points")
            shown.append((name, {m: (words.percent(e.value), words.percent_span(e)) for m, e in means.items()}, points))
        if all("distinct" in part[model] for model in MODELS):
            cells = {model: (words.percent(part[model]["distinct"]), "") for model in MODELS}
            shown.append(("different pairs of tokens (distinct-2)", cells, ("", "")))
        table += [{"decoding": decoding, "measure": name, **cells, "change": change} for name, cells, change in shown]
    return table


def wins(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a decoding: counts, the win rate and, where there is one, the length-controlled one."""
    (rates,) = found.values()
    return [
        {
            **rates[decoding],
            "decoding": decoding,
            "rate": Estimate.of(rates[decoding], "win_rate"),
            "controlled": Estimate.of(rates[decoding], "length_controlled")
            if "length_controlled" in rates[decoding]
            else None,
            "shown": shown(Estimate.of(rates[decoding], "win_rate")),
        }
        for decoding in DECODINGS
    ]


def shown(rate: Estimate) -> str:
    """What a win rate shows of its judge's taste."""
    return {
        "better": "the policy’s answers are preferred",
        "unclear": "a null result, neither’s answers are preferred",
        "worse": "the reference’s answers are preferred",
    }[rate.against(0.5)]


def sentence(found: Mapping[str, Any]) -> str:
    """The win rates in words, and who judged."""
    (kind,) = found
    parts = [
        f"of {words.number(row['n'])} {row['decoding']} answers {words.percent(row['rate'].value)} (95% interval "
        f"{words.percent_span(row['rate'])}; {row['wins']} won, {row['ties']} tied, {row['losses']} lost): {row['shown']}"
        for row in wins(found)
    ]
    caution = ", which is partial to the policy by construction" if kind == "implicit" else ""
    return f"Win rate of the policy’s answers against the reference’s, judged by {JUDGES[kind]}{caution}: {'; '.join(parts)}."


def examples(answers: Answers, count: int) -> list[dict[str, Any]]:
    """The first `count` prompts, in the order of the split: nobody picked them. Both answers under either decoding."""
    outcomes = answers.verdicts.set_index(["id", "decoding"])["outcome"]
    said = {(row["id"], row["decoding"], row["model"]): row for row in answers.rows.to_dict("records")}
    first = answers.rows.drop_duplicates("id").head(count)
    return [
        {
            "id": key,
            "prompt": prompt,
            "decodings": [
                {
                    "name": decoding,
                    "better": OUTCOMES[outcomes[key, decoding]],
                    "sides": {model: said[key, decoding, model] for model in MODELS},
                }
                for decoding in DECODINGS
            ],
        }
        for key, prompt in zip(first["id"], first["prompt"], strict=True)
    ]
