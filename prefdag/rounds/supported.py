"""Which settings of dpo_text rounds cannot go on with. Imports no torch."""

from typing import TYPE_CHECKING

from prefdag.lifecycle.errors import ParamsError

if TYPE_CHECKING:
    from prefdag.config.dpo_text import DpoText


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
