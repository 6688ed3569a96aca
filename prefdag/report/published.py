"""The page as it is published: with what is true of one run alone, how long it took and from which revision it came.

The page that DVC tracks has none of it, so that a rebuild gives the same bytes; see docs/pipeline.md.
"""

import re
from collections.abc import Mapping

from markupsafe import Markup

PLACE = re.compile(r'<p id="run">.*?</p>', re.DOTALL)  # of the template: what comes from data has its brackets escaped
LABELS = {
    "mlflow.source.git.commit": "Git revision",
    "prefdag.git_dirty": "Changes that were not committed",
    "dvc.exp_name": "DVC experiment",
    "dvc.exp_baseline_rev": "DVC experiment grew from",
}
TABLE = Markup('<table class="mapping"><caption>{}</caption><tbody>\n{}</tbody></table>\n')
ROW = Markup('<tr><th scope="row">{}</th><td>{}</td></tr>\n')


def fill(page: str, seconds: Mapping[str, float | None], revision: Mapping[str, str], moment: str) -> str:
    """The page with the durations of the stages and the revision in their place.

    Args:
        seconds: by stage, from `stage.durations`.
        revision: from `tracking.revision`.
        moment: when it is published.
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
    filled, places = PLACE.subn(lambda _: str(html), page)
    assert places == 1, "the page has one place for it"
    return filled


def clock(seconds: float) -> str:
    """4.2 s, 3 min 07 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
