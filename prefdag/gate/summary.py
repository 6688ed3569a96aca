"""What the gate read, dropped and kept, in counts for the report."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from prefdag.gate.measures import scripts
from prefdag.pairs.schema import ignored_columns

if TYPE_CHECKING:
    from prefdag.pairs.eval_sets import EvalRow


def summary(
    pairs: pd.DataFrame,
    dropped: "pd.Series[bool]",
    merged: pd.DataFrame,
    overlaps: pd.DataFrame,
    sets: Mapping[str, Sequence["EvalRow"]],
) -> dict[str, Any]:
    """What the gate read, dropped and kept, for the report.

    Args:
        pairs: the rows that were checked; `dropped` marks those that are dropped.
        merged: rows that were merged into others before the checks, from `annotators.merge_annotators`.
        overlaps: with the eval sets `sets`, from `contamination.find_overlaps`.
    """
    kept = pairs[~dropped & pairs["fault"].isna()]
    overlaps = overlaps.assign(kept=overlaps["pair"].isin(kept["source"]))
    return {
        "rows": {
            "read": len(pairs) + len(merged),
            "merged": len(merged),
            "dropped": int(dropped.sum()),
            "kept": int((~dropped).sum()),
        },
        "formats": _counts(pairs["format"]),
        "ignored_columns": ignored_columns(pairs),
        "splits": _counts(kept["split"].dropna()),
        "kinds": kinds(kept),
        "origins": _counts(kept["origin"]),
        "scripts": _counts(scripts(kept)),
        "evals": {name: _overlap_counts(rows, overlaps[overlaps["set"] == name]) for name, rows in sets.items()},
    }


def _counts(values: "pd.Series[str]") -> dict[str, int]:
    """The number of rows per value, the most frequent value first."""
    return {str(value): int(count) for value, count in values.value_counts().items()}


def _overlap_counts(rows: Sequence["EvalRow"], overlaps: pd.DataFrame) -> dict[str, int]:
    """How many rows of an eval set overlap with a pair, how many exactly, and how many with a pair that is kept."""
    exact = overlaps[overlaps["how"] == "exact"]
    return {
        "rows": len(rows),
        "met": overlaps["row"].nunique(),
        "met_exactly": exact["row"].nunique(),
        "pairs": overlaps["pair"].nunique(),
        "met_by_kept": overlaps["row"][overlaps["kept"]].nunique(),
    }


def kinds(pairs: pd.DataFrame) -> dict[str, int]:
    """The number of rows per kind of preference.

    The kinds are sure (1), leaning (above 0.5), tied (0.5) and reversed (below 0.5); for single responses, desirable and
    undesirable. Kinds without rows are left out.
    """
    single = pairs["chosen"].isna() | pairs["rejected"].isna()
    preference = pairs["preference"]
    counts = {
        "sure": ~single & (preference == 1),
        "leaning": ~single & (preference < 1) & (preference > 0.5),
        "tied": ~single & (preference == 0.5),
        "reversed": ~single & (preference < 0.5),
        "desirable": single & pairs["chosen"].notna(),
        "undesirable": single & pairs["rejected"].notna(),
    }
    return {kind: int(rows.sum()) for kind, rows in counts.items() if rows.any()}
