"""What the data gate expects of labelled images.

Importing this module imports Great Expectations, which takes seconds: stages import it inside `main`.
"""

import great_expectations.expectations as gxe
import pandas as pd

from prefdag.config import ImageLevels
from prefdag.data.checks import Table, at


def images_table(rows: pd.DataFrame, n_classes: int, levels: ImageLevels) -> Table:
    """The rows of `image_rows.image_rows` as a table."""
    last = n_classes - 1
    invalid = at(levels.invalid)
    return Table(
        "images",
        rows,
        [
            gxe.ExpectColumnValuesToBeNull(
                column="fault",
                description="every image can be read, and has the size of most",
                notes="column `fault` says why not",
                **invalid,
            ),
            gxe.ExpectColumnValuesToBeBetween(
                column="label",
                min_value=0,
                max_value=last,
                description="the label names a class",
                notes=f"no class; labels run from 0 to {last}; mend it",
                **invalid,
            ),
            gxe.ExpectColumnValuesToBeBetween(
                column="contrast",
                min_value=1,
                description="the image shows something",
                notes="all pixels are equal; remove the image",
                **invalid,
            ),
            gxe.ExpectColumnValuesToBeNull(
                column="copy_of",
                description="no image stands twice",
                notes="the same pixels as an earlier image; remove it",
                **at(levels.duplicate),
            ),
            gxe.ExpectColumnValuesToBeNull(
                column="near_copy_of",
                description="no image stands twice with slight changes",
                notes="nearly the same pixels as an earlier image; keep one of them",
                **at(levels.near_duplicate),
            ),
            gxe.ExpectColumnValuesToBeNull(
                column="conflict_with",
                description="no image has two labels",
                notes="the same pixels under another label; keep the one with the right label",
                **at(levels.label),
            ),
            gxe.ExpectColumnValuesToBeNull(
                column="likely",
                description="the nearest images have the same label",
                notes="the nearest images are of another class; look at the label",
                **at(levels.label),
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
                description=f"no class is more than {max_imbalance:g} times the smallest",
                notes="too many images next to the smallest class; remove some or raise validate_images.max_imbalance",
                **at("error"),
            ),
        ],
    )
