"""Made-up metrics of an experiment."""

from typing import Any


def metrics(beta: float, judge: str = "implicit") -> dict[str, Any]:
    """Plausible metrics of a run with this beta, whose answers were judged by this kind of judge."""

    def interval(name: str, value: float) -> dict[str, float]:
        return {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1}

    rewards = interval("accuracy", 0.7 - beta / 4) | interval("margin", 0.1 + beta)
    text = {"heldout": {"kl": 0.02 / beta, "rewards": rewards}}
    image = {"kl": 0.002 / beta, "policy": interval("accuracy", 0.85 + beta / 10)}
    return {"text": text, "image": image, "win_rate": {judge: {"greedy": interval("win_rate", 0.8 - beta / 2)}}}
