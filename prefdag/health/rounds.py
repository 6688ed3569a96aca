"""The findings on rounds, from their table only: reports/rounds/table.csv, one row per round, the first of the policy before.

Each finding compares 95% intervals, so that noise alone rarely raises it. docs/health.md says what to do about each.
"""

from collections.abc import Mapping, Sequence
from math import isnan
from typing import TYPE_CHECKING, Any

from pandas import DataFrame

from prefdag.health.verdict import Finding, Verdict
from prefdag.stats.intervals import gap, weighted

if TYPE_CHECKING:
    from prefdag.config.health import RoundsFinding

CHANGED = (
    0.1  # of the value before the rounds: with many prompts, an interval alone finds changes that nobody would notice
)

RoundMetrics = Mapping[Any, Any]


def examine(table: DataFrame) -> Verdict:
    """Check the rounds that ran. Without a stopping judge there is nothing to compare the judge with.

    Length and diversity are those of the chosen round's policy; if no round is chosen, they are not checked.
    """
    first, *records = table.to_dict("records")
    compared = [row for row in records if not isnan(row["gap"])]
    last = next((number for number, row in enumerate(records, 1) if row["chosen"]), 0)
    chosen = records[:last]
    varied = not any(isnan(value) for value in (first["distinct"], *(row["distinct_change"] for row in chosen)))
    checks: dict[RoundsFinding, list[str | None]] = {
        "judge_exploitation": [judge_exploitation(compared)] if compared else [],
        "length_drift": [length_drift(first, chosen[-1])] if chosen else [],
        "falling_diversity": [falling_diversity(first, chosen)] if chosen and varied else [],
    }
    return Verdict(
        [Finding(name, sentence) for name, found in checks.items() for sentence in found if sentence],
        [name for name, found in checks.items() if found],
        [name for name, found in checks.items() if not found],
    )


def judge_exploitation(rows: Sequence[RoundMetrics]) -> str | None:
    """In a round, the judge that made the pairs prefers the new policy, the stopping judge is not shown to, and the two differ.

    That is, the interval of the first one's win rate is above 1/2, that of the other's is not, and that of their difference on
    the same contests is above zero. An optimised judge goes on rising when others have stopped (arXiv:2210.10760).
    """
    found = [
        f"in round {row['round']} the judge prefers the new policy (win rate {_shares(row, 'win_rate')}), the "
        f"stopping judge does not significantly ({_shares(row, 'stopping_win_rate')}); the difference is {_shares(row, 'gap')}"
        for row in rows
        if row["win_rate_low"] > 0.5 and row["stopping_win_rate_low"] <= 0.5 and row["gap_low"] > 0
    ]
    return "; ".join(found) or None


def length_drift(first: RoundMetrics, last: RoundMetrics) -> str | None:
    """The answers became longer or shorter: by more than `CHANGED`, and the interval of the difference does not have zero.

    The interval is that of independent answers. Both policies answered the same prompts, so it is rather too wide.
    """
    low, high = gap(_estimate(last, "tokens"), _estimate(first, "tokens"))
    change = last["tokens"] - first["tokens"]
    if low <= 0 <= high or abs(change) <= CHANGED * first["tokens"]:
        return None
    return (
        f"after round {last['round']}, the mean length of validation answers went from {first['tokens']:.1f} to "
        f"{last['tokens']:.1f} tokens (difference {change:+.1f}, 95% interval {low:+.1f} to {high:+.1f})"
    )


def falling_diversity(first: RoundMetrics, rows: Sequence[RoundMetrics]) -> str | None:
    """distinct-2 of the answers fell at equal lengths: by more than `CHANGED`, and the interval of the change is below zero.

    The change is the sum over the rounds.
    """
    changes = [_estimate(row, "distinct_change") for row in rows]
    change = sum(value for value, _, _ in changes)
    low, high = weighted(changes, [1.0] * len(changes))
    if high >= 0 or -change <= CHANGED * first["distinct"]:
        return None
    return (
        f"after round {rows[-1]['round']}, {-100 * change:.1f} points less of the bigrams in validation answers are different, "
        f"at equal lengths (95% interval {-100 * high:.1f} to {-100 * low:.1f}); "
        f"before the rounds, {first['distinct']:.1%} were"
    )


def _estimate(row: RoundMetrics, name: str) -> tuple[float, float, float]:
    return row[name], row[f"{name}_low"], row[f"{name}_high"]


def _shares(row: RoundMetrics, name: str) -> str:
    value, low, high = (100 * each for each in _estimate(row, name))
    return f"{value:.1f}%, {low:.1f}% to {high:.1f}%"
