"""The published copy of the page, which adds what differs between runs: durations, Git revision, frontier.

The page that DVC tracks has none of these, so that a rebuild gives the same bytes; see docs/pipeline.md.
"""

import re
from collections.abc import Mapping

import pandas as pd
from markupsafe import Markup

from prefdag.report.compare import frontier

LABELS = {
    "mlflow.source.git.commit": "Git revision",
    "prefdag.git_dirty": "Uncommitted changes",
    "dvc.exp_name": "DVC experiment",
    "dvc.exp_baseline_rev": "Baseline of the DVC experiment",
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
    """The page with the durations of the stages, the revision and the frontier filled in.

    Args:
        seconds: by stage, from `runtime.durations`; None if unknown.
        revision: from `tracking.runs.revision`.
        moment: the time of publication.
        experiments: from `frontier.points`, including this one; None if MLflow did not answer.
    """
    known = [value for value in seconds.values() if value is not None]
    caption = (
        f"Wall time by stage, {clock(sum(known))} in total. "
        "For a stage that was killed and resumed, the time since it resumed."
    )
    if len(known) < len(seconds):
        caption += " Unknown for outputs that came from the cache of another repository."
    times = Markup().join(
        ROW.format(name, "unknown" if value is None else clock(value)) for name, value in seconds.items()
    )
    made = {"Published": moment, **{LABELS[key]: value for key, value in revision.items()}}
    rows = Markup().join(ROW.format(*item) for item in made.items())
    html = TABLE.format("This run", rows) + TABLE.format(caption, times)
    return put(put(page, "run", html), "frontier", frontier_section(experiments))


def frontier_section(experiments: pd.DataFrame | None) -> str:
    """The frontier of all experiments, or why there is none."""
    if experiments is None:
        return "<p>MLflow did not answer when this page was published. <code>prefdag frontier</code> plots the experiments.</p>"
    if len(experiments) == 1:
        return "<p>There is no other experiment yet. <code>make sweep BETAS=0.1,0.3,0.5</code> runs three.</p>"
    caption = (
        "Results of all experiments in MLflow, including this one, against their KL, with 95% intervals over rows."
    )
    return f"<p>{caption}</p>\n{frontier.panels(experiments)}"


def put(page: str, place: str, html: str) -> str:
    """The page with its paragraph of this id replaced by `html`. Text from data cannot match: its brackets are escaped."""
    filled, places = re.subn(rf'<p id="{place}">.*?</p>', lambda _: html, page, flags=re.DOTALL)
    assert places == 1, f"the page has one place for {place}"
    return filled


def clock(seconds: float) -> str:
    """4.2 s, 3 min 07 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
