"""The data gate as the report shows it: the expectations, the rows that failed them, and what happened to these rows."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from prefdag.gate.measures import MEASURES

if TYPE_CHECKING:
    from prefdag.report.page.results import Dataset, ImagesDataset, PairsDataset

SHOWN = 20  # rows per failed expectation and per change; the files next to the page list all
LEVELS = {"drop": "left out", "warn": "kept", "error": "stopped"}


def dataset_view(name: str, folder: str, dataset: "Dataset") -> dict[str, Any]:
    """A dataset's splits and the outcome of every expectation, with the count and the first of the rows that failed it.

    Args:
        folder: name of the gate's folder in reports/validation; links are relative to the page.
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
    """`dataset_view` with the shares of the pairs, the changes by formatting, and examples as a model reads them."""
    return dataset_view(name, "pairs", dataset) | {
        "shares": shares_table(dataset.shares),
        "formatted": dataset.formatted,
        "changes": changes_table(dataset.changes),
        "examples": dataset.examples,
    }


def images_view(dataset: "ImagesDataset") -> dict[str, Any]:
    """`dataset_view` with the number of images that have a copy in another split, and what reading changed or left."""
    return dataset_view("Images", "images", dataset) | {
        "straddling": dataset.straddling,
        "altered": altered_images(dataset.gate),
        "left": [
            {"what": what, **dataset.gate[key]}
            for what, key in (("not read, since they are no images", "files_not_read"), ("skipped", "files_skipped"))
            if dataset.gate[key]["count"]
        ],
    }


def altered_images(gate: Mapping[str, Any]) -> dict[str, int]:
    """The number of images by what reading did to them, in words; only what happened."""
    counts = {"turned upright by the EXIF orientation": gate["turned_upright"]}
    counts |= {f"converted to grey or RGB from {stored}": count for stored, count in gate["converted"].items()}
    counts |= {"kept as stored, since the EXIF cannot be read": gate["unreadable_exif"]}
    return {what: count for what, count in counts.items() if count}


def shares_table(shares: pd.DataFrame) -> list[dict[str, Any]]:
    """One row per measure. `cells` has all rows, then each origin, and None if there was nothing to count."""
    sources = list(dict.fromkeys(shares["source"]))
    cells = {(row["measure"], row["source"]): row for row in shares.to_dict("records")}
    return [
        {"what": measure.title, "measure": name, "cells": [(source, cells.get((name, source))) for source in sources]}
        for name, measure in MEASURES.items()
        if any((name, source) in cells for source in sources)
    ]


def changes_table(changes: pd.DataFrame) -> list[Mapping[str, Any]]:
    """One row per kind of change and column, with the count and the first of the changed rows."""
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
