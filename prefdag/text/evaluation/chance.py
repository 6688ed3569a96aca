"""Whether the reward model that the pipeline trained is shown to beat chance. If not, it does not judge. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from prefdag.lifecycle.errors import ParamsError

HELDOUT = "heldout.json"  # in the model's folder: its figures on held-out pairs, null if there is no model


def check_beats_chance(found: Mapping[str, Any] | None, where: str) -> None:
    """Check that the reward model ranks unseen pairs better than a coin.

    Args:
        found: the content of `HELDOUT`.
        where: the judge's key in params.yaml.

    Raises:
        ParamsError: there is no reward model, or the 95% interval of its accuracy reaches down to one half.
    """
    if found is None:
        raise ParamsError(
            f"params.yaml: {where}.source: no reward model was trained; set reward_model.train to true, or choose another judge"
        )
    if found["accuracy_low"] <= 0.5:
        raise ParamsError(
            f"params.yaml: {where}: the trained reward model is not shown to beat chance: it ranks {found['accuracy']:.2f} of "
            f"{found['n']} held-out pairs right (95% interval {found['accuracy_low']:.2f} to {found['accuracy_high']:.2f}); "
            "train it on more pairs, or choose another judge"
        )
