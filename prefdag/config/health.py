"""The sections health_text and health_image."""

from typing import Literal, get_args

from pydantic import field_validator

from prefdag.runtime.types import Positive, strict

TrainingFinding = Literal[  # noqa: RUF041
    Literal["not_at_reference", "zero_gradient", "likelihood_displacement", "length_exploitation"],
    Literal["reward_saturation", "kl_out_of_budget", "drift", "divergence"],
]
RoundsFinding = Literal["judge_exploitation", "length_drift", "falling_diversity"]
FindingName = Literal[TrainingFinding, RoundsFinding]


@strict
class Health:
    """The limits for the verdict on a finished DPO run."""

    kl_budget: Positive  # nats per response
    fail_on: list[FindingName]


@strict
class ImageHealth(Health):
    """Without the findings on rounds, which images do not have."""

    @field_validator("fail_on")
    @classmethod
    def _no_rounds(cls, names: list[FindingName]) -> list[FindingName]:
        if of_rounds := [name for name in names if name in get_args(RoundsFinding)]:
            raise ValueError(f"{of_rounds[0]} is a finding on rounds, which images do not have; remove it")
        return names
