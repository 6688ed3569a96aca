"""How the reference of DPO moves."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from prefdag.config.types import PositiveInt, strict


@strict
class Reference:
    """How the reference of DPO moves: not at all, polyak (every step), copy (every epoch), sync (every so many steps)."""

    update: Literal["none", "polyak", "copy", "sync"]
    alpha: Annotated[float, Field(gt=0, le=1)] | None  # polyak, sync: how far it goes to the policy
    every: PositiveInt | None  # sync: steps

    @model_validator(mode="after")
    def _used(self) -> Self:
        """Each way to move has the parameters that it uses, and no others."""
        for key, users in (("alpha", ("polyak", "sync")), ("every", ("sync",))):
            if (getattr(self, key) is not None) != (self.update in users):
                raise ValueError(
                    f"update '{self.update}' {'needs' if self.update in users else 'does not use'} '{key}'"
                )
        return self
