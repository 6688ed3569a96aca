"""Whether a round is good enough to go on from, and which round's policy is chosen. Imports no torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefdag.rounds.plan import EvaluatePlan


def reasons_to_stop(plan: "EvaluatePlan", win_rate: float | None, kl: float) -> list[str]:
    """Why no further round follows, in words; empty if one may.

    Args:
        win_rate: of the stopping judge, if there is one, against the policy before the round.
        kl: nats per response, from models/reference.
    """
    reasons = []
    if win_rate is not None and win_rate < plan.stop_below:
        reasons.append(f"the win rate of {win_rate:.3f} is below rounds.stop_below, {plan.stop_below:g}")
    if kl > plan.kl_budget:
        reasons.append(f"the KL of {kl:.3g} nats per response is above rounds.kl_budget, {plan.kl_budget:g}")
    return reasons


def chosen_round(results: Mapping[int, Mapping[str, Any] | None]) -> int:
    """The last round that was good, 0 if there is none: dpo_text.

    Args:
        results: what evaluate_round wrote, by round; None for a round that is off.
    """
    return max((number for number, result in results.items() if result and result["go"]), default=0)
