"""Types shared by the sections, and `strict`, which turns a class into a checked part of params.yaml."""

from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

T = TypeVar("T")
PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Dtype = Literal["float32", "bfloat16"]
# How the weights of a language model lie on several processes: each has all of them, or a part (FSDP2, arXiv:2304.11277).
Shard = Literal["none", "full"]


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def strict(section: type[T]) -> type[T]:
    """Make a class a frozen dataclass that requires every key and rejects unknown keys and values of another type."""
    make: Any = dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
    checked: type[T] = make(section)
    return checked


def shape(value: Any) -> str:
    """The tag of a value that is either a name or a mapping. `check` leaves these tags out of its messages."""
    return "<name>" if isinstance(value, str) else "<mapping>"
