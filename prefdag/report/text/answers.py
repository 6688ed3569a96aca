"""The answers of reference, policy and control in report and card: statistics, win rates, and answers side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from prefdag.report.page.numbers import (
    DASH,
    Estimate,
    number,
    percent,
    percent_span,
    points,
    signed,
    signed_span,
)
from prefdag.runtime.artifacts import read_json, read_table

if TYPE_CHECKING:
    from prefdag.config.judge_text import JudgeText
    from prefdag.config.judges import EndpointJudge

DECODINGS = ("greedy", "sampled")
MODELS = ("reference", "policy")
SHARES = {"ended": "reached EOS", "repetition": "repetition (seq-rep-4)", "refused": "refusals"}
JUDGES = {
    "implicit": "the policy’s own implicit reward",
    "reward_model": "a reward model",
    "endpoint": "a model at an endpoint",
    "verify": "a program that checks each answer",
}
OUTCOMES = {"win": "the policy’s", "loss": "the reference’s", "tie": "neither", "unread": "unreadable"}


@dataclass(frozen=True)
class Answers:
    """Answers to held-out prompts (one row each), statistics over them, and verdicts on the policy's and the reference's."""

    rows: pd.DataFrame
    statistics: Mapping[str, Any]
    verdicts: pd.DataFrame
    win_rate: Mapping[
        str, Any
    ]  # one entry, by the kind of judge: against the reference, and the control if there is one


def read_answers(*, rows: Path, statistics: Path, verdicts: Path, win_rate: Path) -> Answers:
    """The outputs of stages answer_text and judge_text. Raises `DataError`."""
    judged = read_table(verdicts).to_pandas()
    judged = judged[judged["against"] == "reference"]
    return Answers(read_table(rows).to_pandas(), read_json(statistics), judged, read_json(win_rate))


def view(answers: Answers, count: int, judge_text: "JudgeText") -> dict[str, Any]:
    """The content of the section: `statistics`, one row per decoding and metric; `wins`, one per decoding; `examples`."""
    (kind,) = answers.win_rate
    return {
        "n": answers.statistics["n_prompts"],
        "sampler": sampler(answers.statistics),
        "models": models(answers.statistics),
        "statistics": statistics(answers.statistics),
        "judge": JUDGES[kind],
        "biased": kind == "implicit",
        "checks": checks(judge_text, answers.verdicts),
        "wins": wins(answers.win_rate),
        "scored": "score_policy" in answers.win_rate[kind][DECODINGS[0]],
        "examples": examples(answers, count),
    }


def sampler(metrics: Mapping[str, Any]) -> str:
    """Which server generated the answers, and how sure it is that it has our models; empty if the stage generated them."""
    if (found := metrics.get("sampler")) is None:
        return ""
    software = " ".join(filter(None, (found["server"], found["version"])))
    names = " and ".join(found[model]["id"] for model in MODELS)
    sentence = f"A server{f' ({software})' if software else ''} generated them with its models {names}"
    if "checked_tokens" in found:
        off = " and ".join(f"{found[model]['difference']:.2g}" for model in MODELS)
        sentence += (
            f", whose log-probabilities of {number(found['checked_tokens'])} tokens differ from those of our models by "
            f"{off} nats per token (root mean square)."
        )
    else:
        sentence += "; nothing shows that these are our models."
    for model in MODELS:
        if near := found[model].get("not_told_from"):
            sentence += f" That {found[model]['id']} is not {' or '.join(near)} is hidden by the server’s rounding."
    if count := found["reencoded"]:
        sentence += f" It sent no token ids for {number(count)} answers, so their text was tokenized again."
    return sentence


def models(metrics: Mapping[str, Any]) -> list[str]:
    """The models that answered."""
    return [model for model in ("reference", "control", "policy") if model in metrics[DECODINGS[0]]]


def statistics(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per decoding and metric: the mean of each model, and policy minus reference, as printed."""
    table = []
    for decoding in DECODINGS:
        part = metrics[decoding]
        means = {model: Estimate.of(part[model], "tokens") for model in models(metrics)}
        change = Estimate.of(part["differences"]["tokens"], "difference")
        cells = {m: (number(e.value, 1), f"{number(e.low, 1)}{DASH}{number(e.high, 1)}") for m, e in means.items()}
        lines = [("length in tokens", cells, (signed(change.value, 1), signed_span(change, 1)))]
        for measure, name in SHARES.items():
            means = {model: Estimate.of(part[model], measure) for model in models(metrics)}
            change = Estimate.of(part["differences"][measure], "difference")
            difference = (points(change.value), f"{points(change.low)} to {points(change.high)} points")
            lines.append((name, {m: (percent(e.value), percent_span(e)) for m, e in means.items()}, difference))
        if all("distinct" in part[model] for model in models(metrics)):
            cells = {model: (percent(part[model]["distinct"]), "") for model in models(metrics)}
            lines.append(("distinct bigrams (distinct-2)", cells, ("", "")))
        table += [{"decoding": decoding, "measure": name, **cells, "change": change} for name, cells, change in lines]
    return table


def wins(win_rate: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per decoding and other model: counts, the win rate, and what else the judge gives."""
    (rates,) = win_rate.values()
    by_model = {"reference": rates} | ({"control": rates["control"]} if "control" in rates else {})
    return [_wins(each[decoding], model, decoding) for model, each in by_model.items() for decoding in DECODINGS]


def _wins(rates: Mapping[str, Any], model: str, decoding: str) -> dict[str, Any]:
    rate = Estimate.of(rates, "win_rate")
    optional = {
        "controlled": "length_controlled",
        "policy_score": "score_policy",
        "other_score": "score_other",
    }
    return {
        **rates,
        "decoding": decoding,
        "against": model,
        "rate": rate,
        **{name: Estimate.of(rates, key) if key in rates else None for name, key in optional.items()},
        "conclusion": conclusion(rate, model),
    }


def conclusion(rate: Estimate, other: str) -> str:
    """Whose answers the judge prefers: the policy's or the other model's."""
    return {
        "better": "the judge prefers the policy’s answers",
        "unclear": "no significant preference",
        "worse": f"the judge prefers the {other}’s answers",
    }[rate.against(0.5)]


def checks(judge_text: "JudgeText", verdicts: pd.DataFrame) -> str:
    """The checks of a program that judged, or that a server had principles, and how often each decided, if one alone does.

    Empty for another judge.
    """
    judge = judge_text.judge
    if judge.kind == "endpoint" and judge.principles:
        return _principles(judge, verdicts["decided_by"])
    if judge.kind != "verify":
        return ""
    names = [check.name or check.kind for check in judge.checks]
    listed = ", ".join(
        name if name == check.kind else f"{name} ({check.kind})"
        for name, check in zip(names, judge.checks, strict=True)
    )
    if len(names) == 1:
        return f"It checks {listed}."
    if judge.combine == "mean":
        return f"It checks {listed}; the higher mean wins."
    decided = verdicts["decided_by"].value_counts()
    counts = ", ".join(f"{name} {number(int(decided.get(name, 0)))}" for name in dict.fromkeys(names))
    return (
        f"It checks, in order, {listed}; the first check that tells the two answers apart decides. Of {number(len(verdicts))} "
        f"contests they decided: {counts}."
    )


def _principles(judge: "EndpointJudge", decided_by: pd.Series) -> str:
    if judge.combine == "mean":
        return "It compares by principles; their mean decides."
    decided = decided_by[decided_by != ""].value_counts()
    counts = ", ".join(f"{name} {number(int(decided[name]))}" for name in sorted(decided.index))
    return (
        "It compares by principles, in order; the first one that tells the two answers apart decides. Of "
        f"{number(len(decided_by))} contests they decided: {counts or 'none'}."
    )


def sentence(win_rate: Mapping[str, Any]) -> str:
    """The win rates and their judge, in words."""
    (kind,) = win_rate
    caution = ", which favours the policy by construction" if kind == "implicit" else ""
    parts: dict[str, list[str]] = {"reference": [], "control": []}
    for row in wins(win_rate):
        parts[row["against"]].append(
            f"{percent(row['rate'].value)} of {number(row['n'])} {row['decoding']} answers (95% interval "
            f"{percent_span(row['rate'])}; {row['wins']} won, {row['ties']} tied, {row['losses']} lost; {row['conclusion']})"
        )
    first = f"Win rate of the policy over the reference, judged by {JUDGES[kind]}{caution}: {'; '.join(parts['reference'])}."
    if not parts["control"]:
        return first
    return f"{first} Over the control, trained by cross-entropy on the same budget: {'; '.join(parts['control'])}."


def effect(win_rate: Mapping[str, Any]) -> str:
    """What the judge says of greedy answers, without a full stop: the scores, if any, and how often the policy's win."""
    (kind,) = win_rate
    against = {row["against"]: row for row in wins(win_rate) if row["decoding"] == "greedy"}
    reference, control = against["reference"], against.get("control")
    caution = ", which favours the policy" if kind == "implicit" else ""
    preferred = (
        f"better than the reference’s in {percent(reference['rate'].value)} of {number(reference['n'])} (95% interval "
        f"{percent_span(reference['rate'])}), judged by {JUDGES[kind]}{caution}: {reference['conclusion']}"
    )
    if reference["policy_score"] is None:
        return preferred
    after = f"{percent(reference['policy_score'].value)} after (95% interval {percent_span(reference['policy_score'])})"
    trained = f", {percent(control['other_score'].value)} after as much cross-entropy" if control else ""
    return f"score {percent(reference['other_score'].value)} before DPO, {after}{trained}; {preferred}"


def examples(answers: Answers, count: int) -> list[dict[str, Any]]:
    """The first `count` prompts of the split, so that none is hand-picked, with both answers for each decoding."""
    outcomes = answers.verdicts.set_index(["id", "decoding"])["outcome"]
    by_key = {(row["id"], row["decoding"], row["model"]): row for row in answers.rows.to_dict("records")}
    first = answers.rows.drop_duplicates("id").head(count)
    return [
        {
            "id": key,
            "prompt": prompt,
            "decodings": [
                {
                    "name": decoding,
                    "better": OUTCOMES[outcomes[key, decoding]],
                    "sides": {model: by_key[key, decoding, model] for model in MODELS},
                }
                for decoding in DECODINGS
            ],
        }
        for key, prompt in zip(first["id"], first["prompt"], strict=True)
    ]
