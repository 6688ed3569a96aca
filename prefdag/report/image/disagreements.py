"""Test images that two classifiers take for different classes: reference and policy, or the policies of two runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from prefdag.report.page.figures import picture


def pictures(
    rows: pd.DataFrame,
    images: np.ndarray,
    classes: Sequence[str],
    models: tuple[str, str],
    titles: tuple[str, str, str],
    count: int,
) -> list[dict[str, Any]]:
    """Images whose predicted class changed, in groups, those whose probability moved most first; about `count` of them.

    Args:
        rows: a row an image: `index` (its place in `images`), `label`, and of either model `MODEL`, the predicted class, and
            `MODEL_probability`, that of the true class.
        images: uint8 (N, C, H, W).
        models: before and after.
        titles: of the groups that only the second gets right, only the first, and neither.
    """
    before, after = models
    rows = rows.assign(moved=rows[f"{after}_probability"] - rows[f"{before}_probability"])
    was_right, is_right = rows[before] == rows["label"], rows[after] == rows["label"]
    changed = rows[before] != rows[after]
    groups: Mapping[str, pd.Series] = dict(
        zip(titles, (changed & is_right, changed & was_right, changed & ~was_right & ~is_right), strict=True)
    )
    filled = {title: rows[mask] for title, mask in groups.items() if mask.any()}
    shown = []
    for title, group in filled.items():
        order = group["moved"].abs().sort_values(ascending=False, kind="stable").index
        head = group.loc[order[: max(1, count // len(filled))]] if count else group[:0]
        items = [
            {
                "source": picture(images[row["index"]]),
                **{key: classes[row[key]] for key in ("label", before, after)},
                **{f"{model}_probability": row[f"{model}_probability"] for model in models},
            }
            for row in head.to_dict("records")
        ]
        shown.append({"title": title, "total": len(group), "items": items})
    return shown
