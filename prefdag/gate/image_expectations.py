"""The data gate's expectations of labelled images.

Importing this module imports Great Expectations, which takes seconds, so stages import it inside `main`.
"""

from typing import TYPE_CHECKING

import great_expectations.expectations as gxe
import pandas as pd

from prefdag.gate.checks import Table, at, none_in

if TYPE_CHECKING:
    from prefdag.config.validate_images import ImageLevels


def images_table(rows: pd.DataFrame, n_classes: int, levels: "ImageLevels") -> Table:
    """The rows of `image_rows.image_rows` as a table."""
    last = n_classes - 1
    invalid = at(levels.invalid)
    return Table(
        "images",
        rows,
        [
            none_in(
                "fault",
                levels.invalid,
                "every image can be read and has the most common size",
                "the column `fault` says why not",
            ),
            gxe.ExpectColumnValuesToBeBetween(
                column="label",
                min_value=0,
                max_value=last,
                description="the label is one of the classes",
                notes=f"not a class; labels range from 0 to {last}; correct it",
                **invalid,
            ),
            gxe.ExpectColumnValuesToBeBetween(
                column="contrast",
                min_value=1,
                description="the image is not blank",
                notes="all pixels are equal; remove the image",
                **invalid,
            ),
            none_in(
                "copy_of", levels.duplicate, "no two images are equal", "the same pixels as an earlier image; remove it"
            ),
            none_in(
                "near_copy_of",
                levels.near_duplicate,
                "no two images are nearly equal",
                "nearly the same pixels as an earlier image; keep one of them",
            ),
            none_in(
                "conflict_with",
                levels.label,
                "no image has two labels",
                "the same pixels under another label; keep the one with the right label",
            ),
            none_in(
                "likely",
                levels.label,
                "the nearest images have the same label",
                "the nearest images are of another class; check the label",
            ),
        ],
    )


def classes_table(rows: pd.DataFrame, max_imbalance: float) -> Table:
    """The rows of `image_rows.class_rows` as a table."""
    return Table(
        "classes",
        rows,
        [
            gxe.ExpectColumnValuesToBeBetween(
                column="images",
                min_value=1,
                description="every class has images",
                notes="no images; add some",
                **at("error"),
            ),
            gxe.ExpectColumnValuesToBeBetween(
                column="times_smallest",
                max_value=max_imbalance,
                description=f"no class is more than {max_imbalance:g} times the size of the smallest",
                notes="too many images compared with the smallest class; remove some or raise validate_images.max_imbalance",
                **at("error"),
            ),
        ],
    )
