"""The key numbers and the figures of the language model."""

from typing import TYPE_CHECKING

from markupsafe import Markup

from prefdag.report.page import calibration
from prefdag.report.page.figures import Line
from prefdag.report.page.numbers import Estimate, number, percent, percent_span, signed, signed_span
from prefdag.report.page.panels import RANKED, KeyNumber, Panel, chosen_and_rejected, dpo_curves, panel
from prefdag.report.text import answers, figures
from prefdag.report.text.sentences import is_paired

if TYPE_CHECKING:
    from prefdag.report.page.results import TextTrack


def key_numbers(text: "TextTrack") -> list[KeyNumber]:
    """Ranking accuracy, the answers' score if the judge gives any, else the mean margin, KL and perplexity."""
    heldout = text.metrics["heldout"]
    accuracy, margin = Estimate.of(heldout["rewards"], "accuracy"), Estimate.of(heldout["rewards"], "margin")
    if is_paired(text.metrics):
        ranked, difference = RANKED, "Mean reward margin"
        rows = f"n = {number(heldout['n_pairs'])} pairs"
    else:  # an area under a curve
        ranked, difference = "Pairs ranked correctly", "Difference of mean rewards"
        rows = f"n = {number(heldout['n_chosen'])} and {number(heldout['n_rejected'])} responses"
    return [
        KeyNumber(ranked, percent(accuracy.value), percent_span(accuracy), rows, accuracy),
        _score(text) or KeyNumber(difference, signed(margin.value), signed_span(margin), rows),
        KeyNumber("KL to the reference", number(heldout["kl"], 4), "nats per token", rows),
        KeyNumber(
            "Perplexity",
            number(heldout["policy"]["perplexity"], 2),
            f"reference {number(heldout['reference']['perplexity'], 2)}",
            f"n = {number(heldout['n_tokens'])} tokens",
        ),
    ]


def _score(text: "TextTrack") -> KeyNumber | None:
    greedy = [row for row in answers.wins(text.answers.win_rate) if row["decoding"] == "greedy"]
    if (score := greedy[0]["policy_score"]) is None:
        return None
    others = ", ".join(f"{row['against']} {percent(row['other_score'].value)}" for row in greedy)
    return KeyNumber(
        "Score of the answers", percent(score.value), others, f"n = {number(greedy[0]['n'])} answers", score
    )


def curves(text: "TextTrack") -> list[Panel]:
    """Training curves of the policy and of its reference."""
    return [
        *dpo_curves(text.dpo, "text"),
        *panel(text.dpo, "Log-probabilities, nats", chosen_and_rejected("logps"), "text-logps"),
        *panel(text.sft, "Reference: supervised loss", [Line("loss", "reference")], "text-sft"),
    ]


def heldout(text: "TextTrack") -> list[Panel]:
    """Margins, rewards and calibration of the held-out pairs; of unpaired responses, histograms of the rewards."""
    if not is_paired(text.metrics):
        return [Panel("Rewards of both kinds", Markup(figures.spread(text.pairs, name="spread")))]
    return [
        Panel("Reward margins", Markup(figures.margins(text.pairs["margin"], name="margins"))),
        Panel("Reward of chosen against rejected", Markup(figures.rewards(text.pairs, name="scatter"))),
        Panel(
            "Calibration of the margins",
            Markup(calibration.of_margins(text.pairs["margin"], text.pairs["preference"], name="calibration")),
        ),
    ]
