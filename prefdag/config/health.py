"""The sections health_text and health_image."""

from typing import Literal

from prefdag.config.types import Positive, strict

FindingName = Literal[  # noqa: RUF041
    Literal["not_at_reference", "zero_gradient", "likelihood_displacement", "length_exploitation"],
    Literal["reward_saturation", "kl_out_of_budget", "drift", "divergence"],
]


@strict
class Health:
    """What the verdict on a finished DPO run goes by."""

    kl_budget: Positive  # nats a response
    fail_on: list[FindingName]
