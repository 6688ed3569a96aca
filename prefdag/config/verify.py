"""Checks of answers by a program."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from prefdag.lifecycle.errors import suggestion
from prefdag.own_losses.names import OWN_CHECKS, own_checks
from prefdag.runtime.types import Count, NonNegative, Positive, Text, strict


def _regular_expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression ({error}), {pattern!r}; fix it") from None
    return pattern


def _json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema.validators import validator_for

    try:
        validator_for(schema, Draft202012Validator).check_schema(schema)
    except SchemaError as error:
        place = "".join(f".{part}" for part in error.absolute_path)
        raise ValueError(f"no JSON schema ({error.message} at {place or 'its top'}); fix it") from None
    return schema


def _own_check(name: str) -> str:
    if name not in (own := own_checks()):
        raise ValueError(f"no check '{name}' in {OWN_CHECKS}; {suggestion(name, own, 'add it to CHECKS there')}")
    return name


@strict
class RegexCheck:
    """The answer has a match of a regular expression of Python, or has none."""

    kind: Literal["regex"]
    pattern: Annotated[Text, AfterValidator(_regular_expression)]
    found: bool = True  # false: a match fails
    name: Text | None = None


@strict
class NumberCheck:
    """The last number of the answer equals the last number of the chosen response."""

    kind: Literal["number"]
    tolerance: NonNegative = 0.0  # absolute
    name: Text | None = None


@strict
class JsonCheck:
    """The answer is JSON and nothing else, and conforms to a JSON schema."""

    kind: Literal["json"]
    schema: Annotated[dict[str, Any], AfterValidator(_json_schema)] | None = None
    name: Text | None = None


@strict
class LengthCheck:
    """The answer has from `min` to `max` words or characters, both included."""

    kind: Literal["length"]
    unit: Literal["words", "characters"]
    min: Count = 0
    max: Annotated[Count | None, Field(validate_default=True)] = None
    name: Text | None = None

    @field_validator("max")
    @classmethod
    def _in_order(cls, value: int | None, others: ValidationInfo) -> int | None:
        least = others.data.get("min", 0)
        if value is None and not least:
            raise ValueError("missing, and so is min; set one")
        if value is not None and value < least:
            raise ValueError(f"{value} is below min, {least}")
        return value


@strict
class InstructionsCheck:
    """The share of the instructions in the prompt's last message that the answer follows: those that
    prefdag/text/evaluation/instructions.py can check."""

    kind: Literal["instructions"]
    name: Text | None = None


@strict
class FunctionCheck:
    """A function of the user's own."""

    kind: Literal["function"]
    function: Annotated[Text, AfterValidator(_own_check)]  # its name in CHECKS of stages/verify.py
    name: Text | None = None


Check = Annotated[
    RegexCheck | NumberCheck | JsonCheck | LengthCheck | InstructionsCheck | FunctionCheck,
    Field(discriminator="kind"),
]


@strict
class VerifyJudge:
    """A program. In `mean` an answer's reward is the mean of its scores; `in_order`, the first check that tells two answers
    apart decides: principles, the most important one first."""

    kind: Literal["verify"]
    checks: Annotated[list[Check], Field(min_length=1)]
    combine: Literal["mean", "in_order"] = "mean"
    timeout: Positive = 10.0  # seconds for the checks of one answer
