"""What the data gate expects of labelled images.

Importing this module imports Great Expectations, which takes seconds: stages import it inside `main`.
"""

import great_expectations.expectations as gxe
import pandas as pd
from great_expectations.expectations.expectation import Expectation

from prefdag.data.checks import Table, at
from prefdag.data.duplicates import copy_of


def images_tables(images: pd.DataFrame, classes: pd.DataFrame, max_imbalance: float) -> list[Table]:
    """The tables of `images.image_rows` and `images.class_rows`."""
    last = len(classes) - 1
    of_images: list[Expectation] = [
        gxe.ExpectColumnValuesToBeBetween(
            column="label",
            min_value=0,
            max_value=last,
            description="the label names a class",
            notes=f"no class; labels run from 0 to {last}; mend it",
            **at("error"),
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="contrast",
            min_value=1,
            description="the image shows something",
            notes="all pixels are equal; remove the image",
            **at("error"),
        ),
        gxe.ExpectColumnValuesToBeNull(
            column="copy_of",
            description="no image stands twice",
            notes="the same pixels as an earlier image",
            **at("warn"),
        ),
    ]
    of_classes: list[Expectation] = [
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
    ]
    images = images.assign(copy_of=copy_of(images["source"], images["content"]))
    return [Table("images", images, of_images), Table("classes", classes, of_classes)]
