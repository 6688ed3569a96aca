"""The table of rounds: one row for the policy before them, and one for each round that ran. Imports no torch.

Estimates have their 95% intervals, `_low` and `_high`. A cell is empty if there is no such number: of the policy before the
rounds no judge has compared, and without a stopping judge there is no agreement.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ESTIMATES = (
    *("win_rate", "length_controlled", "stopping_win_rate", "stopping_length_controlled", "agreement", "gap"),
    *("kl_to_reference", "tokens", "repetition", "ended", "refused", "distinct", "distinct_change"),
)
COUNTS = ("prompts", "prompts_kept", "prompts_rejected", "pairs")
COLUMNS = (
    *("round", "good", "chosen", "n"),
    *(f"{name}{end}" for name in ESTIMATES for end in ("", "_low", "_high")),
    *COUNTS,
)


def rows(results: Mapping[int, Mapping[str, Any] | None], chosen: int) -> list[dict[str, float | None]]:
    """The rows, none if no round ran.

    Args:
        results: what evaluate_round wrote, by round; None for a round that is off.
        chosen: the round whose policy is chosen.
    """
    ran = {number: result for number, result in results.items() if result}
    if not ran:
        return []
    found: list[dict[str, Any]] = [{"round": 0, **ran[min(ran)]["before"]}]
    for number, result in ran.items():
        stopping = {f"stopping_{name}": value for name, value in result.get("stopping_judge", {}).items()}
        kl = {name: value for name, value in result.items() if name.startswith("kl_to_reference")}
        row = {
            **result.get("agreement", {}),
            **result["judge"],
            **stopping,
            **result["after"],
            **result["change"],
            **kl,
        }
        found.append({**row, **result["pairs"], "round": number, "good": int(result["go"])})
    return [{name: row.get(name) for name in COLUMNS} | {"chosen": int(row["round"] == chosen)} for row in found]


def write(path: Path, table: Sequence[Mapping[str, float | None]]) -> None:
    """Write the rows as CSV; without rows, the header alone."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
