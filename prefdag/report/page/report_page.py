"""The report: results in, one self-contained HTML page out.

This module chooses what is shown and in which order; templates/ says how it looks. The page asks nothing of any network:
style, script, figures and pictures are inside. Everything that comes from data is escaped by jinja2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isclose, log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from prefdag.report.image import calibration
from prefdag.report.image import disagreements as changes
from prefdag.report.image import figures as image_figures
from prefdag.report.page import figures, gate, provenance, script
from prefdag.report.page import phrases as words
from prefdag.report.page.figures import Line
from prefdag.report.page.phrases import Estimate
from prefdag.report.text import answers, examples
from prefdag.runtime.yaml import flatten

if TYPE_CHECKING:
    from prefdag.config.params import Params
    from prefdag.report.page.results import ImageTrack, Results, Run, TextTrack

TEMPLATES = Path(__file__).parents[1] / "templates"
SETS = {
    "heldout": "Held-out chosen responses",
    "truthfulqa": "TruthfulQA form",
    "winogrande": "WinoGrande form, right filling",
    "winogrande_wrong": "WinoGrande form, wrong filling",
    "winogrande_sentence": "WinoGrande form, whole sentence",
    "pku": "Preference pairs, chosen",
}
EXCERPT = 420  # characters of a long text that show before it is unfolded


@dataclass(frozen=True)
class Panel:
    """A figure with the few words above it."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class KeyNumber:
    """A number large, its interval and what it was counted on small. With `share`, a scale from 0 to 100% is drawn."""

    label: str
    value: str
    detail: str
    count: str
    share: Estimate | None = None


def environment(*, autoescape: bool) -> Environment:
    """jinja2, strict about names, with the filters of `words`."""
    env = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {
        f.__name__: f
        for f in (
            *(
                words.percent,
                words.percent_span,
                words.signed,
                words.signed_span,
                words.number,
                words.health_line,
                words.spaced,
                words.minus,
            ),
            *(
                words.loss_name,
                words.reference,
                words.adapter,
                words.supervised,
                words.training,
                words.negatives,
                words.span,
                words.points,
                words.p_value,
                words.paired_shown,
                excerpt,
                turns,
            ),
        )
    }
    env.globals |= {"script": script.script, "policy": script.policy}
    return env


def render(results: "Results", params: "Params") -> str:
    """The whole page."""
    paired = words.is_paired(results.text.metrics)
    return (
        environment(autoescape=True)
        .get_template("page.html.j2")
        .render(
            params=params,
            flat_params=flatten(params),
            loss_settings=words.loss_settings(params),
            source_name=provenance.source_name,
            text=results.text,
            paired=paired,
            text_verdict=words.text_verdict(results.text.metrics),
            text_numbers=text_numbers(results.text),
            text_curves=text_curves(results.text),
            text_margins=text_margins(results.text),
            cross_entropy=cross_entropy_table(results.text.metrics),
            choices=choices_table(results.text.metrics),
            answers=answers.view(results.text.answers, params.report.answers),
            examples=examples.examples(results.text, params.report.text_examples),
            image=results.image,
            image_verdict=words.image_verdict(results.image.metrics),
            image_numbers=image_numbers(results.image),
            image_curves=image_curves(results.image),
            accuracies=Markup(image_figures.accuracies(results.image, name="accuracies")),
            class_accuracies=Markup(image_figures.by_class(results.image, name="classes")),
            confusion=image_figures.confusion(results.image),
            image_calibration=image_calibration(results.image),
            pictures=pictures(results.image, params.report.image_examples),
            pairs_gate=gate.pairs_view("Preference pairs" if paired else "Labelled responses", results.pairs),
            images_gate=gate.images_view(results.images),
            hashes=results.hashes,
            ref_logps=flatten(results.ref_logps),
            versions=provenance.versions(),
            hardware=provenance.hardware(),
        )
    )


def text_numbers(text: "TextTrack") -> list[KeyNumber]:
    """The text track in four numbers."""
    heldout = text.metrics["heldout"]
    accuracy, margin = Estimate.of(heldout["rewards"], "accuracy"), Estimate.of(heldout["rewards"], "margin")
    tokens = f"n = {words.number(heldout['n_tokens'])} tokens"
    if words.is_paired(text.metrics):
        difference, rows = "Mean reward margin", f"n = {words.number(heldout['n_pairs'])} pairs"
    else:
        difference = "Difference of mean rewards"
        rows = f"n = {words.number(heldout['n_chosen'])} and {words.number(heldout['n_rejected'])} responses"
    return [
        KeyNumber("Pairs ranked right", words.percent(accuracy.value), words.percent_span(accuracy), rows, accuracy),
        KeyNumber(difference, words.signed(margin.value), words.signed_span(margin), rows),
        KeyNumber("KL to the reference", words.number(heldout["kl"], 4), "nats a token", rows),
        KeyNumber(
            "Perplexity",
            words.number(heldout["policy"]["perplexity"], 2),
            f"reference {words.number(heldout['reference']['perplexity'], 2)}",
            tokens,
        ),
    ]


def image_numbers(image: "ImageTrack") -> list[KeyNumber]:
    """The image track in four numbers."""
    count = f"n = {words.number(image.metrics['n_test'])} images"
    models = {"policy": "Accuracy, policy", "reference": "Accuracy, reference", "control": "Accuracy, control"}
    shares = {label: Estimate.of(image.metrics[model], "accuracy") for model, label in models.items()}
    shares["Pairs ranked right"] = Estimate.of(image.metrics["rewards"], "accuracy")
    return [KeyNumber(label, words.percent(e.value), words.percent_span(e), count, e) for label, e in shares.items()]


def text_curves(text: "TextTrack") -> list[Panel]:
    """Training of the policy, then that of its reference."""
    return [
        *dpo_curves(text.dpo, "text"),
        *panel(text.dpo, "Log-probabilities, nats", chosen_and_rejected("logps"), "text-logps"),
        *panel(text.sft, "Reference: supervised loss", [Line("loss", "reference")], "text-sft"),
    ]


def image_curves(image: "ImageTrack") -> list[Panel]:
    """Training of the policy, then that of its reference and its control."""
    return [
        *dpo_curves(image.dpo, "image"),
        *panel(image.dpo, "Policy: accuracy", [Line("accuracy", "policy")], "image-policy", as_percent=True),
        *panel(image.warmup, "Reference: accuracy", [Line("accuracy", "reference")], "image-warmup", as_percent=True),
        *panel(image.control, "Control: accuracy", [Line("accuracy", "control")], "image-control", as_percent=True),
    ]


def dpo_curves(run: "Run", name: str) -> list[Panel]:
    """Loss, rewards, margin and accuracy of a DPO run: those that its history has."""
    first = float(run.validation["loss"].iloc[0])  # step 0: ln 2 for sigmoid, where the policy is its reference
    start = (first, "ln 2" if isclose(first, log(2), abs_tol=5e-4) else words.number(first))
    return [
        *panel(run, "Loss", [Line("loss", "policy")], f"{name}-loss", level=start),
        *panel(run, "Rewards", chosen_and_rejected("rewards"), f"{name}-rewards", level=(0.0, "")),
        *panel(run, "Reward margin", [Line("rewards/margin", "policy")], f"{name}-margin", level=(0.0, "")),
        *panel(
            run,
            "Pairs ranked right",
            [Line("rewards/accuracy", "policy")],
            f"{name}-accuracy",
            (0.5, "chance"),
            as_percent=True,
        ),
    ]


def chosen_and_rejected(of: str) -> list[Line]:
    """The two columns of a pair's metric."""
    return [Line(f"{of}/{side}", side, side) for side in ("chosen", "rejected")]


def panel(
    run: "Run",
    title: str,
    lines: Sequence[Line],
    name: str,
    level: tuple[float, str] | None = None,
    as_percent: bool = False,
) -> list[Panel]:
    """One panel, or none where the run has none of these columns."""
    if not figures.has(run.history, run.validation, lines):
        return []
    svg = figures.curves(run.history, run.validation, lines, name=name, level=level, as_percent=as_percent)
    return [Panel(title, Markup(svg))]


def text_margins(text: "TextTrack") -> list[Panel]:
    """The held-out pairs: how far apart each pair's two rewards are, and where they lie; or the rewards of lone responses."""
    if not words.is_paired(text.metrics):
        return [Panel("Rewards of either kind", Markup(figures.spread(text.pairs, name="spread")))]
    return [
        Panel("Reward margins", Markup(figures.margins(text.pairs["margin"], name="margins"))),
        Panel("Reward of chosen against rejected", Markup(figures.rewards(text.pairs, name="scatter"))),
        Panel(
            "Share ranked right against stated",
            Markup(calibration.reliability(text.pairs["margin"], text.pairs["preference"], name="calibration")),
        ),
    ]


def image_calibration(image: "ImageTrack") -> list[Panel]:
    """How far the confidence of each model can be trusted."""
    bins = {str(model): part for model, part in image.calibration.groupby("model")}
    return [
        Panel(
            f"{model.capitalize()}: calibration error {words.percent(image.metrics[model]['calibration_error'])}",
            Markup(calibration.of_classes(bins[model], model, name=f"calibration-{model}")),
        )
        for model in ("reference", "policy", "control")
    ]


def cross_entropy_table(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a set, in the order of SETS; the three models side by side, and policy minus reference with its interval."""
    return [
        {
            "name": name,
            "change": Estimate.of(metrics[key]["differences"]["policy_reference"], "difference"),
            **metrics[key],
        }
        for key, name in SETS.items()
        if key in metrics
    ]


CHOICES = {
    "TruthfulQA form, MC1": ("truthfulqa", "mc1"),
    "TruthfulQA form, MC2": ("truthfulqa", "mc2"),
    "WinoGrande form, accuracy": ("winogrande", "accuracy"),
}


def choices_table(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a measure, in the order of CHOICES: how often each model takes the right answer among given ones."""
    found = metrics["choices"]
    return [
        {
            "name": name,
            "n": found[key]["policy"]["n"],
            **{model: Estimate.of(found[key][model], measure) for model in ("base", "reference", "policy")},
        }
        for name, (key, measure) in CHOICES.items()
        if key in found
    ]


def pictures(image: "ImageTrack", count: int) -> list[dict[str, Any]]:
    """Test images whose predicted class DPO changed; see `changes.pictures`."""
    titles = ("Set right", "Broken", "Wrong before and after, in another way")
    return changes.pictures(image.predictions, image.images, image.classes, ("reference", "policy"), titles, count)


def turns(prompt: str | Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """A prompt as turns of a conversation: of messages, or of one text."""
    if isinstance(prompt, str):
        return [{"role": "as the models read it", "content": prompt}]
    return [{"role": turn["role"], "content": turn["content"]} for turn in prompt]


def excerpt(text: str) -> tuple[str, str]:
    """A long text cut at a word into what shows and what unfolds; a short one whole, with nothing to unfold."""
    if len(text) <= 1.2 * EXCERPT:
        return text, ""
    space = max(text.rfind(blank, EXCERPT // 2, EXCERPT) for blank in (" ", "\n"))
    cut = space if space > 0 else EXCERPT
    return text[:cut], text[cut:]
