"""The section reward_model_image."""

from prefdag.runtime.types import Positive, strict


@strict
class RewardModelImage:
    train: bool  # false: there is none
    l2: Positive  # half of it times the sum of squares of all weights is added to the mean loss
