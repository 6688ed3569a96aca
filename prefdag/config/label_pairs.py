"""The section label_pairs."""

from prefdag.runtime.types import Count, Fraction, PositiveInt, strict


@strict
class LabelPairs:
    max_images: PositiveInt | None
    val_fraction: Fraction
    test_fraction: Fraction
    seed: Count
