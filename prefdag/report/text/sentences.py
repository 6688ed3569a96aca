"""The sentences on the language model, which the report and the model card print unchanged."""

from collections.abc import Mapping
from typing import Any

from prefdag.report.page.conclusions import Conclusion, against_zero
from prefdag.report.page.numbers import Estimate, number, percent, percent_span, signed, signed_span
from prefdag.report.text import answers


def is_paired(metrics: Mapping[str, Any]) -> bool:
    """Whether the held-out rows of reports/text/metrics.json are pairs, rather than unpaired responses."""
    return "n_pairs" in metrics["heldout"]


def conclusion(metrics: Mapping[str, Any], win_rate: Mapping[str, Any] | None = None) -> Conclusion:
    """What reports/text/metrics.json shows, and reports/text/win_rate.json, if it is given."""
    heldout = metrics["heldout"]
    rewards = heldout["rewards"]
    accuracy, margin = Estimate.of(rewards, "accuracy"), Estimate.of(rewards, "margin")
    tone = accuracy.against(0.5)
    headline = {
        "better": "The policy ranks unseen preferences better than chance.",
        "unclear": "The policy does not rank unseen preferences significantly better than chance.",
        "worse": "The policy ranks unseen preferences worse than chance.",
    }[tone]
    against_chance = {
        "better": "entirely above the chance level of 50%",
        "unclear": "which includes the chance level of 50%",
        "worse": "entirely below the chance level of 50%",
    }[tone]
    interval = f"95% interval {percent_span(accuracy)}, {against_chance}"
    if is_paired(metrics):
        ranked = (
            f"The policy ranks {percent(accuracy.value)} of {number(heldout['n_pairs'])} held-out pairs correctly "
            f"({interval})."
        )
        difference = "The mean reward margin"
    else:  # accuracy is the area under the ROC curve
        ranked = (
            f"The policy ranks {percent(accuracy.value)} of all pairs of a desirable and an undesirable held-out response "
            f"correctly ({number(heldout['n_chosen'])} desirable, {number(heldout['n_rejected'])} undesirable; {interval})."
        )
        difference = "The mean reward of desirable responses minus that of undesirable ones"
    change = Estimate.of(heldout["differences"]["policy_reference"], "difference")
    perplexity = {m: number(heldout[m]["perplexity"], 2) for m in ("base", "reference", "policy")}
    return Conclusion(
        tone,
        headline,
        (
            ranked,
            *([f"Greedy answers to held-out prompts: {answers.effect(win_rate)}."] if win_rate else []),
            f"{difference} is {signed(margin.value)} (95% interval {signed_span(margin)}, {against_zero(margin)}).",
            displacement(rewards["chosen"], rewards["rejected"]),
            f"KL to the reference: {number(heldout['kl'], 4)} nats per token. On the held-out chosen responses "
            f"({number(heldout['n_tokens'])} tokens) the perplexity is {perplexity['policy']} for the policy, "
            f"{perplexity['reference']} for the reference and {perplexity['base']} for the base model. The policy’s "
            f"cross-entropy minus the reference’s is {signed(change.value, 4)} nats per token (95% interval "
            f"{signed_span(change, 4)}, {against_zero(change)}).",
        ),
    )


def cut(formatted: Mapping[str, Any]) -> str:
    """How much of the pairs is shorter than their text; empty if nothing was cut.

    Args:
        formatted: reports/validation/formatted/summary.json.
    """
    shares = {part: formatted[part]["truncated"] for part in ("prompt", "chosen", "rejected")}
    if not any(shares.values()):
        return ""
    return (
        f"Cut before training and scoring: {percent(shares['prompt'])} of the prompts to their last "
        f"{number(formatted['max_prompt_tokens'])} tokens, {percent(shares['chosen'])} of the chosen and "
        f"{percent(shares['rejected'])} of the rejected responses to their first {number(formatted['max_response_tokens'])}."
    )


def displacement(chosen: float, rejected: float) -> str:
    """How the likelihood of chosen and rejected responses changed. In DPO both often fall: arXiv:2402.13228.

    Args:
        chosen, rejected: mean rewards. A reward is positive if the policy makes the response more likely.
    """
    if chosen < 0 and rejected < 0:
        more = "rejected" if rejected < chosen else "chosen"
        return (
            "Chosen and rejected responses are both less likely under the policy than under the reference, the "
            f"{more} ones more so (mean reward {signed(chosen)} for chosen, {signed(rejected)} for rejected)."
        )
    likely = [
        "more likely" if reward > 0 else "less likely" if reward < 0 else "equally likely"
        for reward in (chosen, rejected)
    ]
    return (
        f"Compared with the reference, the policy makes chosen responses {likely[0]} (mean reward {signed(chosen)}) "
        f"and rejected ones {likely[1]} (mean reward {signed(rejected)})."
    )
