"""The page as it is published: with what is true of one run alone, how long it took and from which revision it came.

The page that DVC tracks has none of it, so that a rebuild gives the same bytes; see docs/pipeline.md.
"""

import re
from collections.abc import Mapping

import pandas as pd
from markupsafe import Markup

from prefdag.report.compare import frontier

LABELS = {
    "mlflow.source.git.commit": "Git revision",
    "prefdag.git_dirty": "Changes that were not committed",
    "dvc.exp_name": "DVC experiment",
    "dvc.exp_baseline_rev": "DVC experiment grew from",
}
TABLE = Markup('<table class="mapping"><caption>{}</caption><tbody>\n{}</tbody></table>\n')
ROW = Markup('<tr><th scope="row">{}</th><td>{}</td></tr>\n')


def fill(
    page: str,
    seconds: Mapping[str, float | None],
    revision: Mapping[str, str],
    moment: str,
    experiments: pd.DataFrame | None,
) -> str:
    """The page with the durations of the stages, the revision and the frontier in their places.

    Args:
        seconds: by stage, from `stage.durations`.
        revision: from `tracking.revision`.
        moment: when it is published.
        experiments: from `frontier.points`, this one among them; None: MLflow did not answer.
    """
    known = [value for value in seconds.values() if value is not None]
    caption = f"Wall time by stage, {clock(sum(known))} in all; of a stage that went on after a kill, since then"
    if len(known) < len(seconds):
        caption += "; of what came from the cache of another repository nothing is known"
    times = Markup().join(
        ROW.format(name, "not known" if value is None else clock(value)) for name, value in seconds.items()
    )
    made = {"Published": moment, **{LABELS[key]: value for key, value in revision.items()}}
    rows = Markup().join(ROW.format(*item) for item in made.items())
    html = TABLE.format("This run", rows) + TABLE.format(caption, times)
    return put(put(page, "run", html), "frontier", among(experiments))


def among(experiments: pd.DataFrame | None) -> str:
    """What this experiment gained beside the others."""
    if experiments is None:
        return "<p>MLflow did not answer when this page was published; <code>prefdag frontier</code> draws them.</p>"
    if len(experiments) == 1:
        return "<p>There was no other with other results; <code>make sweep BETAS=0.1,0.3,0.5</code> runs some.</p>"
    said = "What the experiments in MLflow gained against their KL, with 95% intervals over rows"
    return f"<p>{said}; this one is among them.</p>\n{frontier.panels(experiments)}"


def put(page: str, place: str, html: str) -> str:
    """The page with `html` for its paragraph of this id, which is the template's: what comes from data has no brackets."""
    filled, places = re.subn(rf'<p id="{place}">.*?</p>', lambda _: html, page, flags=re.DOTALL)
    assert places == 1, f"the page has one place for {place}"
    return filled


def clock(seconds: float) -> str:
    """4.2 s, 3 min 07 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
