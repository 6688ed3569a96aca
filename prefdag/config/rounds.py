"""The section rounds."""

import json
from dataclasses import fields
from typing import Annotated, Any, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import to_jsonable_python

from prefdag.config.judges import RoundJudge, named
from prefdag.config.round import NUMBERS, Round, RoundNumber
from prefdag.lifecycle.errors import suggestion
from prefdag.runtime.types import strict


@strict
class Rounds(Round):
    count: Annotated[int, Field(ge=0, le=len(NUMBERS))]
    overrides: dict[str, dict[str, Any]]  # settings of single rounds, by number

    @model_validator(mode="after")
    def _known_overrides(self) -> Self:
        names = [each.name for each in fields(Round)]
        for key, own in self.overrides.items():
            if key not in map(str, NUMBERS):
                raise ValueError(f"overrides.{key}: no such round; choose from {', '.join(map(str, NUMBERS))}")
            for name in own:
                if name not in names:
                    raise ValueError(f"overrides.{key}.{name}: unknown key; {suggestion(name, names, 'remove it')}")
        for number in NUMBERS:
            self.round(number)
        return self

    def round(self, number: RoundNumber) -> Round:
        """The settings of a round. Raises `ValueError` if its overrides are wrong."""
        every = to_jsonable_python(self)
        own = self.overrides.get(str(number), {})
        tree = {each.name: own.get(each.name, every[each.name]) for each in fields(Round)}
        try:
            return TypeAdapter(Round).validate_json(json.dumps(tree))
        except ValidationError as error:
            first = error.errors()[0]
            keys = (str(key) for key in first["loc"] if not str(key).startswith("<"))  # tags are no keys
            place = ".".join(("overrides", str(number), *keys))
            raise ValueError(f"{place}: {first['msg'].removeprefix('Value error, ')}") from None

    def judges(self) -> dict[str, list[RoundJudge]]:
        """The judges of all rounds that are on, by key in params.yaml."""
        found: dict[str, list[RoundJudge]] = {}
        for number in NUMBERS[: self.count]:
            own = self.round(number)
            for name, judge in named(own.judge).items():
                found.setdefault(f"rounds.{name}", []).append(judge)
            if own.stopping_judge:
                found.setdefault("rounds.stopping_judge", []).append(own.stopping_judge)
        return found
