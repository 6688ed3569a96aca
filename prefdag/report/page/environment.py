"""The jinja2 environment of all templates, and the filters that cut and split long texts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from prefdag.pairs.turns import messages, shown
from prefdag.report.image import sentences as image_sentences
from prefdag.report.page import conclusions, numbers, script, settings

TEMPLATES = Path(__file__).parents[1] / "templates"
EXCERPT = 420  # characters of a long text that are visible before it is unfolded


def environment(*, autoescape: bool) -> Environment:
    """jinja2 that refuses undefined names, with the filters of the templates."""
    env = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (
        *(numbers.percent, numbers.percent_span, numbers.span, numbers.points, numbers.signed, numbers.signed_span),
        *(numbers.number, numbers.p_value, numbers.minus, numbers.spaced),
        *(settings.loss_name, settings.reference, settings.adapter, settings.supervised),
        *(settings.training, settings.negatives),
        *(conclusions.health_line, image_sentences.compared, excerpt, turns),
    )
    env.filters |= {each.__name__: each for each in filters}
    env.globals |= {"script": script.script, "policy": script.policy}
    return env


def turns(prompt: str | Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The turns of a prompt; a prompt that is one text becomes one turn. Calls and reasoning are part of the text."""
    if isinstance(prompt, str):
        return [{"role": "as the models read it", "content": prompt}]
    return [{"role": turn["role"], "content": shown(turn)} for turn in messages(prompt)]


def excerpt(text: str) -> tuple[str, str]:
    """A long text cut at a word: the visible part and the rest. A short text is not cut, and its rest is empty."""
    if len(text) <= 1.2 * EXCERPT:
        return text, ""
    space = max(text.rfind(blank, EXCERPT // 2, EXCERPT) for blank in (" ", "\n"))
    cut = space if space > 0 else EXCERPT
    return text[:cut], text[cut:]
