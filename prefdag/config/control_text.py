"""The section control_text."""

from prefdag.runtime.types import Positive, strict


@strict
class ControlText:
    train: bool  # false: no control
    learning_rate: Positive  # the peak of the schedule; everything else is that of dpo_text
