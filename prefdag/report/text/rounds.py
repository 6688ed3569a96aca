"""The rounds in report and card: their table, two figures, and pairs that can be traced to their samples."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import Markup

from prefdag.config.round import NUMBERS, identity
from prefdag.report.page.figures import COLOR, svg
from prefdag.report.page.numbers import Estimate, number, percent, percent_span, plural, points
from prefdag.report.page.panels import Panel
from prefdag.report.text.answers import JUDGES
from prefdag.runtime.artifacts import read_csv, read_json, read_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from prefdag.config.params import Params

MOST = 2  # pairs shown
OF_ROUNDS = {**JUDGES, "people": "people", "implicit": "the implicit reward of the policy before the round"}
SHARES = {
    "win_rate": "Win rate against the policy before, by the judge",
    "length_controlled": "– length-controlled",
    "stopping_win_rate": "Win rate against the policy before, by the stopping judge",
    "stopping_length_controlled": "– length-controlled, by the stopping judge",
    "agreement": "Contests on which both judges agree",
}
NATS, TOKENS = {"kl_to_reference": "KL to the first reference, nats per response"}, {"tokens": "Length in tokens"}
OF_ANSWERS = {
    "ended": "Reached EOS",
    "repetition": "Repetition (seq-rep-4)",
    "refused": "Refusals",
    "distinct": "Distinct bigrams (distinct-2)",
}
CHANGE = {"distinct_change": "– its change at equal lengths, points"}
COUNTS = {"pairs": "Pairs kept", "prompts_kept": "Prompts with a pair", "prompts_rejected": "Prompts without a pair"}


@dataclass(frozen=True)
class RoundsReport:
    """The table of rounds that ran, what select_policy chose, and of the last round that ran its new pairs and its people."""

    table: pd.DataFrame
    chosen: Mapping[str, Any]
    pairs: pd.DataFrame
    people: Mapping[str, Any] | None  # as `agreement.summary`; None if no people labelled


def read_rounds(table: Path, chosen: Path, pairs: Sequence[Path]) -> RoundsReport | None:
    """The rounds; None if none ran. `pairs` are the folders of their pairs, from the first round on. Raises `DataError`."""
    if not len(rows := read_csv(table)):
        return None
    last = int(rows["round"].iloc[-1])
    every = read_table(pairs[last - 1] / "train.parquet").to_pandas()
    people = read_json(pairs[last - 1] / "summary.json").get("people")
    return RoundsReport(rows, read_json(chosen), every[every["round"] == last], people)


def view(rounds: RoundsReport, params: "Params") -> dict[str, Any]:
    """The content of the section."""
    records = rounds.table.to_dict("records")
    made = [identity(judge) for judge in _of_rounds(rounds, params, "judge")]
    return {
        "summary": summary(rounds, params),
        "n": number(int(records[-1]["n"])),
        "judges": " ".join([judges(rounds, params), *labelled(rounds.people)]),
        "not_independent": identity(params.judge_text.judge) in made,
        "titles": [_title(row) for row in records],
        "rows": lines(records),
        "panels": panels(rounds.table),
        "pairs": pairs(rounds.pairs, min(MOST, params.report.text_examples)),
    }


def summary(rounds: RoundsReport, params: "Params") -> str:
    """How many rounds ran, which policy was chosen, and why no further one ran. The report and the card print it unchanged."""
    last, chosen, count = int(rounds.table["round"].iloc[-1]), rounds.chosen["round"], params.rounds.count
    policy = f"the policy of round {chosen}" if chosen else "no round was good, so the policy of dpo_text"
    ran = f"{last} of {count} {plural('round', count)} of DPO on the policy’s own answers ran; {policy} was chosen."
    if reasons := rounds.chosen["reasons"]:
        return f"{ran} Round {last} was the last: {'; '.join(reasons)}."
    return ran if last == count else f"{ran} No pair could be made in round {last + 1}."


def judges(rounds: RoundsReport, params: "Params") -> str:
    """Who made the pairs, and who could stop the rounds."""
    made = " or ".join(
        dict.fromkeys(OF_ROUNDS.get(each.kind, each.kind) for each in _of_rounds(rounds, params, "judge"))
    )
    stopping = [each for each in _of_rounds(rounds, params, "stopping_judge") if each]
    if not stopping:
        return f"The judge that made the pairs is {made}. No stopping judge was set, so nothing checks that judge."
    other = " or ".join(dict.fromkeys(OF_ROUNDS.get(each.kind, each.kind) for each in stopping))
    return f"The judge that made the pairs is {made}; the stopping judge, which did not, is {other}."


def labelled(people: Mapping[str, Any] | None) -> list[str]:
    """How many people labelled the last round, and how far they agree; empty without people."""
    if people is None:
        return []
    said = (
        f"In the last round, {people['people']} {'person' if people['people'] == 1 else 'people'} gave {people['labels']} "
        f"{plural('label', people['labels'])} on {people['comparisons']} {plural('comparison', people['comparisons'])}"
    )
    if "agreement" not in people:
        return [f"{said}; no comparison has votes of two people, so their agreement is unknown."]
    kappa = f" (Fleiss’ kappa {people['kappa']:.2f})" if "kappa" in people else ""
    agreed = f"where two people compared the same answers, they agree in {percent(people['agreement'])} of the cases"
    return [f"{said}; {agreed}, n = {people['compared_twice']}{kappa}."]


def _of_rounds(rounds: RoundsReport, params: "Params", key: str) -> list[Any]:
    """The judges of the rounds that ran, which may have several each."""
    last = int(rounds.table["round"].iloc[-1])
    every = (getattr(params.rounds.round(number), key) for number in NUMBERS if number <= last)
    return [judge for each in every for judge in (each if isinstance(each, list) else [each])]


def _title(row: Mapping[Any, Any]) -> str:
    name = f"round {row['round']}" if row["round"] else "before (dpo_text)"
    return f"{name}, chosen" if row["chosen"] else name


def lines(records: Sequence[Mapping[Any, Any]]) -> list[dict[str, Any]]:
    """One line per measure that any round has: its name, and for each row of the table value and interval as printed."""

    def nats(value: float) -> str:
        return number(value, 2)

    def tokens(value: float) -> str:
        return number(value, 1)

    writers = [(SHARES, percent), (NATS, nats), (TOKENS, tokens), (OF_ANSWERS, percent), (CHANGE, points)]
    found = [
        {"name": name, "cells": [_cell(row, column, write) for row in records]}
        for names, write in writers
        for column, name in names.items()
        if any(not pd.isna(row[column]) for row in records)
    ]
    counts = [
        {"name": name, "cells": [("–" if pd.isna(row[column]) else number(int(row[column])), "") for row in records]}
        for column, name in COUNTS.items()
    ]
    return [*found, *counts]


def _cell(row: Mapping[Any, Any], column: str, write: Any) -> tuple[str, str]:
    if pd.isna(row[column]):
        return "–", ""
    estimate = Estimate.of(row, column)
    if write is percent:
        return percent(estimate.value), percent_span(estimate)
    return write(estimate.value), f"{write(estimate.low)} to {write(estimate.high)}"


def panels(table: pd.DataFrame) -> list[Panel]:
    """Win rates and KL by round."""
    kl = {"kl_to_reference": ("policy", "")}
    judges = {"win_rate": ("first", "judge"), "stopping_win_rate": ("second", "stopping judge")}
    found = [Panel("KL to the first reference, nats per response", Markup(by_round(table, kl, name="rounds-kl")))]
    if table[list(judges)].notna().any(axis=None):  # people alone do not judge validation answers
        rates = Markup(by_round(table, judges, name="rounds-win-rate", level=0.5, as_percent=True))
        found.insert(0, Panel("Win rate against the policy before", rates))
    return found


def by_round(
    table: pd.DataFrame,
    columns: Mapping[str, tuple[str, str]],
    *,
    name: str,
    level: float | None = None,
    as_percent: bool = False,
) -> str:
    """Dots with their 95% intervals by round.

    Args:
        columns: to a role, which gives the colour, and a label. Columns without a value are left out.
    """
    drawn = {column: table.dropna(subset=column) for column in columns}
    drawn = {column: rows for column, rows in drawn.items() if len(rows)}

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        if level is not None:
            axes.axhline(level, color=COLOR["muted"], linewidth=0.9, dashes=(3, 3))
        for i, (column, rows) in enumerate(drawn.items()):
            role, label = columns[column]
            x = rows["round"].to_numpy() + 0.08 * i  # beside each other
            axes.vlines(x, rows[f"{column}_low"], rows[f"{column}_high"], color=COLOR[role], linewidth=1.2, alpha=0.5)
            axes.plot(x, rows[column], color=COLOR[role], marker="os"[i], markersize=4.5, linewidth=1.0)
            axes.text(0.02 + 0.3 * i, 1.02, label, color=COLOR[role], va="bottom", transform=axes.transAxes)
        axes.set_xlim(-0.3, float(table["round"].max()) + 0.3)
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        if as_percent:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}%"))

    write = percent if as_percent else number
    described = "; ".join(
        f"round {row['round']}{f', {columns[column][1]}' if columns[column][1] else ''}: {write(row[column])} "
        f"({write(row[f'{column}_low'])} to {write(row[f'{column}_high'])})"
        for column, rows in drawn.items()
        for row in rows.to_dict("records")
    )
    return svg(draw, (290, 190), (44, 16, 22, 20), name, f"By round, with 95% intervals. {described}.")


def pairs(table: pd.DataFrame, count: int) -> list[dict[str, Any]]:
    """The first `count` new pairs of the last round, so that none is hand-picked, with all that leads to their samples."""
    return [
        {
            **{str(column): value for column, value in row.items()},
            "samples": f"data/rounds/{row['round']}/samples/answers.parquet",
            "judge": _written(row["judge"]),
            "sampler": _written(row["sampler"]),
            "sides": {
                side: {name: row[f"{side}_{name}"] for name in ("sample", "score", "tokens")} | {"text": row[side]}
                for side in ("chosen", "rejected")
            },
        }
        for row in table.head(count).to_dict("records")
    ]


def _written(settings: str) -> str:
    """JSON of settings, or of a list of them, as words: implicit, or local (max_new_tokens 48, temperature 1.0)."""
    found = json.loads(settings)
    return ", ".join(map(_words, found if isinstance(found, list) else [found]))


def _words(settings: Mapping[str, Any]) -> str:
    kind, rest = settings["kind"], {key: value for key, value in settings.items() if key != "kind"}
    inside = ", ".join(f"{key} {value if isinstance(value, str) else json.dumps(value)}" for key, value in rest.items())
    return f"{kind} ({inside})" if inside else str(kind)
