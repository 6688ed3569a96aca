"""The section report."""

from prefdag.runtime.types import Count, strict


@strict
class Report:
    text_examples: Count  # held-out pairs shown at most
    answers: Count  # prompts whose answers are shown
    image_examples: Count  # test images shown
