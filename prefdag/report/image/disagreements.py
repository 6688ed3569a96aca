"""Test images to which two classifiers assign different classes: reference and policy, or the policies of two runs."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from prefdag.report.page.results import ImageTrack


def of_policy(image: "ImageTrack", count: int) -> list[dict[str, Any]]:
    """Test images whose predicted class DPO changed; see `pictures`."""
    titles = ("Fixed", "New errors", "Wrong before and after, with different classes")
    return pictures(image.predictions, image.images, image.classes, ("reference", "policy"), titles, count)


def pictures(
    rows: pd.DataFrame,
    images: np.ndarray,
    classes: Sequence[str],
    models: tuple[str, str],
    titles: tuple[str, str, str],
    count: int,
) -> list[dict[str, Any]]:
    """About `count` images whose predicted class changed, in groups; largest change of the true class's probability first.

    Args:
        rows: one row per image: `index` (its position in `images`), `label`, and for each model `MODEL` (the predicted
            class) and `MODEL_probability` (the probability of the true class).
        images: uint8 (N, C, H, W).
        models: before and after.
        titles: of the groups that only the second model classifies correctly, only the first, and neither.
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


def picture(pixels: np.ndarray) -> str:
    """A uint8 image of shape (C, H, W) with 1 or 3 channels, as a PNG in a data URI."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
