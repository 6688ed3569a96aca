"""The report: one self-contained HTML page.

This module chooses what the page shows; templates/ decides how it looks. Style, script, figures and pictures are inside the
page, so it needs no network. jinja2 escapes everything that comes from data.
"""

from typing import TYPE_CHECKING

from markupsafe import Markup

from prefdag.report.image import disagreements
from prefdag.report.image import figures as image_figures
from prefdag.report.image import panels as image_panels
from prefdag.report.image import sentences as image_sentences
from prefdag.report.page import gate, provenance, reward_models, settings
from prefdag.report.page.environment import environment
from prefdag.report.text import answers, examples, tables
from prefdag.report.text import panels as text_panels
from prefdag.report.text import rounds as text_rounds
from prefdag.report.text import sentences as text_sentences
from prefdag.runtime.yaml import flatten

if TYPE_CHECKING:
    from prefdag.config.params import Params
    from prefdag.report.page.results import Results


def render(results: "Results", params: "Params") -> str:
    """The whole page."""
    text, image = results.text, results.image
    paired = text_sentences.is_paired(text.metrics)
    return (
        environment(autoescape=True)
        .get_template("page.html.j2")
        .render(
            params=params,
            flat_params=flatten(params),
            loss_settings=settings.loss_settings(params),
            source_name=provenance.source_name,
            model_name=provenance.model_name,
            text=text,
            paired=paired,
            text_conclusion=text_sentences.conclusion(text.metrics, text.answers.win_rate),
            cut=text_sentences.cut(results.pairs.formatted),
            text_numbers=text_panels.key_numbers(text),
            text_curves=text_panels.curves(text),
            rounds=results.rounds and text_rounds.view(results.rounds, params),
            reward_model=reward_models.view(results.reward_models["text"], "reward-model"),
            image_reward_model=reward_models.view(results.reward_models["image"], "image-reward-model"),
            heldout=text_panels.heldout(text),
            cross_entropy=tables.cross_entropy(text.metrics),
            choices=tables.choices(text.metrics),
            answers=answers.view(text.answers, params.report.answers, params.judge_text),
            examples=examples.examples(text, params.report.text_examples),
            image=image,
            image_conclusion=image_sentences.conclusion(image.metrics),
            image_numbers=image_panels.key_numbers(image),
            image_curves=image_panels.curves(image),
            accuracies=Markup(image_figures.accuracies(image, name="accuracies")),
            class_accuracies=Markup(image_figures.by_class(image, name="classes")),
            confusion=image_figures.confusion(image),
            confidence=image_panels.confidence(image),
            pictures=disagreements.of_policy(image, params.report.image_examples),
            pairs_gate=gate.pairs_view("Preference pairs" if paired else "Labelled responses", results.pairs),
            images_gate=gate.images_view(results.images),
            hashes=results.hashes,
            ref_logps=flatten(results.ref_logps),
            versions=provenance.versions(),
            hardware=provenance.hardware(),
        )
    )
