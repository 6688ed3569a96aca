"""How the reference of DPO is updated."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from prefdag.runtime.types import PositiveInt, strict


@strict
class Reference:
    """How the reference is updated: never (none), every step (polyak), every epoch (copy), every `every` steps (sync)."""

    update: Literal["none", "polyak", "copy", "sync"]
    alpha: Annotated[float, Field(gt=0, le=1)] | None  # polyak, sync: weight of the policy in an update
    every: PositiveInt | None  # sync: steps between updates

    @model_validator(mode="after")
    def _used(self) -> Self:
        """Each kind of update takes the parameters that it uses, and no others."""
        for key, users in (("alpha", ("polyak", "sync")), ("every", ("sync",))):
            if (getattr(self, key) is not None) != (self.update in users):
                raise ValueError(
                    f"update '{self.update}' {'needs' if self.update in users else 'does not use'} '{key}'"
                )
        return self
