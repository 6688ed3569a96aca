"""Which weights of a language model are trained: an adapter, or all of them."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from prefdag.runtime.types import Dtype, Fraction, PositiveInt, Text, shape, strict


@strict
class Lora:
    """LoRA, arXiv:2106.09685: W + (alpha / rank) B A on each target module. qlora: W in 4 bits, arXiv:2305.14314."""

    kind: Literal["lora", "qlora"]
    rank: PositiveInt
    alpha: PositiveInt
    dropout: Fraction
    # auto: peft's default modules for the architecture; all-linear: every linear layer except the head
    target_modules: Annotated[
        Annotated[Literal["auto", "all-linear"], Tag("<name>")]
        | Annotated[list[Text], Field(min_length=1), Tag("<mapping>")],
        Discriminator(shape),
    ]
    rslora: bool  # scaled by alpha / sqrt(rank), arXiv:2312.03732
    dora: bool  # direction and magnitude are separate, arXiv:2402.09353


@strict
class Prefix:
    """Prefix tuning, arXiv:2101.00190: trained keys and values before every prompt.

    Training does not start at the reference.
    """

    kind: Literal["prefix"]
    tokens: PositiveInt


@strict
class Full:
    """Every weight is trained."""

    kind: Literal["full"]


Adapter = Annotated[Lora | Prefix | Full, Field(discriminator="kind")]
MergedAdapter = Annotated[Lora | Full, Field(discriminator="kind")]


def check_load_dtype(load_dtype: Dtype, kind: str, precision: Dtype) -> None:
    """Raise `ValueError` if weights in bfloat16 would lose what is trained, or would not fit the computation."""
    if load_dtype == "float32":
        return
    if kind != "lora":
        raise ValueError(f"load_dtype bfloat16 does not support adapters of kind {kind}: set it to float32")
    if precision == "float32":
        raise ValueError("load_dtype bfloat16 needs training.precision bfloat16: set both to the same")
