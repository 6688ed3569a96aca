"""The data gate as the report shows it: what was expected, which rows fell short, and what became of them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from prefdag.report.page.results import Dataset, ImagesDataset, PairsDataset

SHOWN = 20  # rows of a fault or a change; all stand in the files beside the page
SHARES = {
    "longer_preferred": "the preferred response is the longer one",
    "disagreement": "mean probability that the rejected response is the better one",
    "repeated_prompts": "prompts that stood in an earlier row",
    "repeated_runs": "runs of four words in responses that were said before",
    "other_scripts": "rows in another script than most",
    "largest_origin": "rows of the largest origin",
}
LEVELS = {"drop": "left out", "warn": "kept", "error": "stopped"}


def dataset_view(name: str, folder: str, dataset: "Dataset") -> dict[str, Any]:
    """A dataset's splits, the outcome of every expectation, and for each that failed the first rows and their number.

    Args:
        folder: of the gate's files below reports/validation; links are relative to the page.
    """
    rows = dict(list(dataset.offending.groupby("expectation", sort=False)))
    checks = [
        {
            "name": check["name"],
            "what": check["description"],
            "where": ", ".join(
                [table, *(str(v) for k, v in sorted(check["kwargs"].items()) if k.startswith("column"))]
            ),
            "met": check["success"],
        }
        | _faults(rows.get(check["name"]))
        for table, result in dataset.expectations.items()
        for check in result["results"]
    ]
    return {
        "name": name,
        "id": folder,
        "docs": f"validation/{folder}/data_docs/index.html",
        "all": f"validation/{folder}/offending.csv",
        "rows": dataset.rows,
        "gate": dataset.gate,
        "checks": checks,
        "met": sum(check["met"] for check in checks),
    }


def pairs_view(name: str, dataset: "PairsDataset") -> dict[str, Any]:
    """As `dataset_view`, and what the pairs are like as a whole, what formatting changed, and what a model reads of them."""
    return dataset_view(name, "pairs", dataset) | {
        "shares": shares_table(dataset.shares),
        "formatted": dataset.formatted,
        "changes": changes_table(dataset.changes),
        "examples": dataset.examples,
    }


def images_view(dataset: "ImagesDataset") -> dict[str, Any]:
    """As `dataset_view`, and how many images have a copy in another split."""
    return dataset_view("Images", "images", dataset) | {"straddling": dataset.straddling}


def shares_table(shares: pd.DataFrame) -> list[dict[str, Any]]:
    """One row a measure; `cells` are of all rows, then of each origin, None where there was nothing to count."""
    sources = list(dict.fromkeys(shares["source"]))
    found = {(row["measure"], row["source"]): row for row in shares.to_dict("records")}
    return [
        {"what": what, "measure": measure, "cells": [(source, found.get((measure, source))) for source in sources]}
        for measure, what in SHARES.items()
        if any((measure, source) in found for source in sources)
    ]


def changes_table(changes: pd.DataFrame) -> list[Mapping[str, Any]]:
    """One row a kind of change and column: how many rows, and the first of them."""
    return [
        {
            "change": change,
            "column": column,
            "rows": len(rows),
            "first": rows.head(SHOWN).assign(excerpt=rows["reason"]).to_dict("records"),
        }
        for (change, column), rows in changes.groupby(["change", "column"], sort=True)
    ]


def _faults(rows: pd.DataFrame | None) -> dict[str, Any]:
    if rows is None:
        return {"outcome": "met", "level": "", "count": 0, "first": []}
    level = str(rows["level"].iloc[0])
    first = rows.head(SHOWN).fillna("").to_dict("records")
    return {"outcome": LEVELS[level], "level": level, "count": len(rows), "first": first}
