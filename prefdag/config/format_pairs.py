"""The section format_pairs."""

from typing import Annotated, Literal

from pydantic import Field

from prefdag.runtime.types import Count, Fraction, PositiveInt, strict


@strict
class FormatPairs:
    template: Literal["chat", "instruction"]
    max_prompt_tokens: PositiveInt
    max_response_tokens: Annotated[int, Field(ge=2)]  # one token and EOS
    max_left_out: Fraction  # share of all rows
    max_pairs: PositiveInt | None
    val_fraction: Fraction
    test_fraction: Fraction
    seed: Count
