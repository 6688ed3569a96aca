"""Which settings of dpo_text and of rounds no round can have. Imports no torch."""

from typing import TYPE_CHECKING

from prefdag.config.judges import EndpointJudge, named
from prefdag.config.round import NUMBERS, PromptSource
from prefdag.config.sources import PathSource
from prefdag.lifecycle.errors import ParamsError
from prefdag.text.evaluation.principles import check_pinned

if TYPE_CHECKING:
    from prefdag.config.dpo_text import DpoText
    from prefdag.config.rounds import Rounds


def check_pins(rounds: "Rounds") -> None:
    """Raises `ParamsError` if a round that is on reads prompts or principles from a path without a pin."""
    for own in (rounds.round(number) for number in NUMBERS if number <= rounds.count):
        if isinstance(own.prompts, PromptSource) and isinstance(own.prompts.source, PathSource):
            check_pinned(own.prompts.source, "rounds.prompts.source")
        for name, judge in {**named(own.judge), "stopping_judge": own.stopping_judge}.items():
            if isinstance(judge, EndpointJudge) and judge.principles:
                check_pinned(judge.principles, f"rounds.{name}.principles")


def check_training(config: "DpoText") -> None:
    """Raises `ParamsError` if rounds cannot go on with a training like this."""
    if config.reference.update != "none":
        raise ParamsError(
            f"params.yaml: dpo_text.reference.update: '{config.reference.update}' moves the reference, which rounds name "
            "themselves; set it to none, or rounds.count to 0"
        )
    if config.adapter.kind == "qlora":
        raise ParamsError(
            "params.yaml: dpo_text.adapter.kind: rounds score their pairs with the full weights, and qlora trains on those "
            "in 4 bits; set it to lora, or rounds.count to 0"
        )
