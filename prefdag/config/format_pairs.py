"""The section format_pairs."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from prefdag.runtime.types import Count, Fraction, PositiveInt, shape, strict

# auto: the length that holds 95% of the rows
Auto = Annotated[Literal["auto"], Tag("<name>")]
Proportion = Annotated[float, Field(ge=0, le=1)]


@strict
class FormatPairs:
    """How pairs become tokens and splits."""

    template: Literal["chat", "instruction"]
    template_options: dict[str, Any]  # variables of the model's chat template, such as enable_thinking
    max_prompt_tokens: Annotated[Annotated[PositiveInt, Tag("<mapping>")] | Auto, Discriminator(shape)]
    max_response_tokens: Annotated[  # at least one token and the end of the turn
        Annotated[int, Field(ge=2), Tag("<mapping>")] | Auto, Discriminator(shape)
    ]
    max_auto_tokens: Annotated[int, Field(ge=4)]  # of a prompt and its response together, if chosen by auto
    max_left_out: Fraction  # share of all rows
    max_rendered: Proportion  # share of all rows
    max_pairs: PositiveInt | None
    val_fraction: Fraction
    test_fraction: Fraction
    seed: Count
