"""Figures as inline SVG: pure functions from tables to strings, the same bytes every time.

matplotlib lays out and draws. Colours are roles ("policy", "chosen"): they enter as placeholder values and leave as CSS
variables, so that the page's stylesheet alone decides what they look like, in light and in dark. Every figure says in
words what it shows (`aria-label`), for those who do not see it.
"""

import base64
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from prefdag.report.page.phrases import Estimate, number, percent, percent_span, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROLES = ("ink", "muted", "grid", "base", "reference", "policy", "control", "chosen", "rejected", "first", "second")
COLOR = {role: f"#0000{i:02x}" for i, role in enumerate(ROLES, start=1)}
STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be read, searched and set in the page's font
    "svg.hashsalt": "prefdag",  # ids are the same in every build
    "font.size": 10.5,
    "text.color": COLOR["ink"],
    "axes.edgecolor": COLOR["muted"],
    "axes.labelcolor": COLOR["muted"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.xmargin": 0.02,
    "axes.ymargin": 0.1,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": COLOR["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": COLOR["muted"],
    "ytick.color": COLOR["muted"],
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}
MAX_POINTS = 240  # of one line: more than a screen shows, and the page stays small for runs of any length


@dataclass(frozen=True)
class Line:
    """A column to draw, in the colour of `role`; `label` stands at the line's end."""

    column: str
    role: str
    label: str = ""


def has(history: pd.DataFrame, validation: pd.DataFrame, lines: Sequence[Line]) -> bool:
    """Whether any of the lines has a value to draw."""
    return any(len(_series(frame, line.column)) for frame in (history, validation) for line in lines)


def curves(
    history: pd.DataFrame,
    validation: pd.DataFrame,
    lines: Sequence[Line],
    *,
    name: str,
    level: tuple[float, str] | None = None,
    as_percent: bool = False,
) -> str:
    """Columns against the optimiser step: training as a faint line, validations as dots on a strong one.

    A column that a frame lacks is left out. `level` is a value to compare with, and its name. `name` makes ids unique.
    """
    drawn = [line for line in lines if has(history, validation, [line])]

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        ends: list[tuple[float, str, str]] = []
        if level:
            axes.axhline(level[0], color=COLOR["muted"], linewidth=0.9, dashes=(3, 3))
            ends.append((level[0], level[1], "muted"))
        for line in drawn:
            training, validations = _series(history, line.column), _series(validation, line.column)
            thinned = _thin(training)
            axes.plot(thinned.index, thinned, color=COLOR[line.role], alpha=0.4, linewidth=1.0)
            axes.plot(validations.index, validations, color=COLOR[line.role], marker="o", markersize=3.6)
            last = validations if len(validations) else training
            ends.append((float(last.iloc[-1]), line.label, line.role))
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        if as_percent:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}%"))
        _label_ends(axes, ends)

    described = "; ".join(_describe(history, validation, line, as_percent) for line in drawn)
    return svg(draw, (290, 190), (42, 50, 22, 8), name, f"Curves by optimiser step. {described}.")


def margins(margin: pd.Series, *, name: str) -> str:
    """How the held-out reward margins are spread; zero is an edge between bins, since it divides right from wrong."""
    right, wrong = int((margin > 0).sum()), int((margin < 0).sum())
    reach = float(margin.abs().max()) or 1.0
    width = _nice(2 * reach / 24)
    low, high = np.floor(margin.min() / width), np.ceil(margin.max() / width)
    edges = np.arange(min(low, -1), max(high, 1) + 1) * width

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import MaxNLocator

        counts, _ = np.histogram(margin[margin != 0], edges)
        axes.bar(
            edges[:-1] + width / 2,
            counts,
            width=0.86 * width,
            color=[COLOR["chosen"] if left > -width / 2 else COLOR["rejected"] for left in edges[:-1]],
        )
        axes.axvline(0, color=COLOR["ink"], linewidth=0.9)
        axes.set_ylim(0, 1.28 * max(counts.max(), 1))
        axes.grid(axis="y")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        top = axes.get_xaxis_transform()
        axes.text(
            -width / 3, 0.96, f"{number(wrong)} wrong", ha="right", va="top", color=COLOR["rejected"], transform=top
        )
        axes.text(width / 3, 0.96, f"{number(right)} right", ha="left", va="top", color=COLOR["chosen"], transform=top)

    words = f"Histogram of {number(len(margin))} reward margins: {number(right)} above zero, {number(wrong)} below."
    return svg(draw, (290, 190), (30, 12, 22, 8), name, words)


def rewards(pairs: pd.DataFrame, *, name: str) -> str:
    """One dot a held-out pair: reward of the chosen response over that of the rejected. Above the diagonal is right."""
    every = max(1, len(pairs) // 600)
    shown = pairs.sort_values("margin")[::every]

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import MaxNLocator

        both = shown[["reward_rejected", "reward_chosen"]].to_numpy()
        low, high = min(both.min(), 0.0), max(both.max(), 0.0)
        pad = 0.06 * (high - low or 1.0)
        axes.set_xlim(low - pad, high + pad)
        axes.set_ylim(low - pad, high + pad)
        axes.axhline(0, color=COLOR["grid"], linewidth=0.8)
        axes.axvline(0, color=COLOR["grid"], linewidth=0.8)
        axes.plot([low - pad, high + pad], [low - pad, high + pad], color=COLOR["muted"], linewidth=0.9, dashes=(3, 3))
        for is_right, role in ((True, "chosen"), (False, "rejected")):
            part = shown[(shown["margin"] > 0) == is_right]
            axes.scatter(
                part["reward_rejected"], part["reward_chosen"], s=13, color=COLOR[role], alpha=0.75, linewidths=0
            )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=4))
        for x, y, text, ha, va in (
            (0.02, 0.99, "reward of chosen", "left", "top"),
            (0.99, 0.02, "of rejected", "right", "bottom"),
        ):
            axes.text(x, y, text, ha=ha, va=va, color=COLOR["muted"], fontsize=9.5, transform=axes.transAxes)

    words = (
        f"Scatter of {number(len(shown))} held-out pairs. Reward of the chosen response: mean "
        f"{signed(float(pairs['reward_chosen'].mean()))}; of the rejected: "
        f"mean {signed(float(pairs['reward_rejected'].mean()))}."
    )
    return svg(draw, (290, 190), (44, 12, 22, 8), name, words)


def spread(pairs: pd.DataFrame, *, name: str) -> str:
    """How the rewards of desirable and of undesirable responses are spread: histograms, in shares of either kind."""
    kinds = {"desirable": "chosen", "undesirable": "rejected"}
    rewards = {kind: pairs[f"reward_{side}"].dropna() for kind, side in kinds.items()}
    edges = np.histogram_bin_edges(pd.concat(rewards.values()), 20)

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        for height, (kind, values) in zip((0.99, 0.88), rewards.items(), strict=True):
            color = COLOR[kinds[kind]]
            shares = np.histogram(values, edges)[0] / len(values)
            axes.stairs(shares, edges, color=color, fill=True, alpha=0.25)
            axes.stairs(shares, edges, color=color, linewidth=1.6)
            axes.text(0.02, height, kind, va="top", color=color, transform=axes.transAxes)
        axes.axvline(0, color=COLOR["ink"], linewidth=0.9)
        axes.set_ylim(0, 1.35 * axes.get_ylim()[1])
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}%"))

    words = "; ".join(f"{number(len(v))} {kind}, mean {signed(float(v.mean()))}" for kind, v in rewards.items())
    return svg(draw, (290, 190), (42, 12, 22, 8), name, f"Histograms of the rewards of responses: {words}.")


def intervals(rows: pd.DataFrame, *, name: str) -> str:
    """A dot and its 95% interval a row. Columns: label, role, value, low, high, all shares."""
    records = rows.to_dict("records")

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        for y, row in enumerate(records):
            color = COLOR[row["role"]]
            axes.plot([row["low"], row["high"]], [y, y], color=color, linewidth=2.2)
            axes.plot([row["value"]], [y], color=color, marker="o", markersize=6.5)
            axes.text(
                -0.03, y, row["label"], ha="right", va="center", color=color, transform=axes.get_yaxis_transform()
            )
            span = percent_span(Estimate(row["value"], row["low"], row["high"]))
            right: dict[str, Any] = {"va": "center", "transform": axes.get_yaxis_transform()}
            axes.text(1.04, y, percent(row["value"]), ha="left", **right)
            axes.text(1.27, y, span, ha="left", color=COLOR["muted"], fontsize=9.5, **right)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks([])
        axes.margins(x=0.12)
        axes.grid(axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}%"))

    words = "; ".join(
        f"{row['label']} {percent(row['value'])}, 95% interval {percent(row['low'])} to {percent(row['high'])}"
        for row in records
    )
    return svg(draw, (380, 34 + 32 * len(rows)), (66, 108, 22, 8), name, f"Accuracies with 95% intervals. {words}.")


def picture(pixels: np.ndarray) -> str:
    """A uint8 image of shape (C, H, W), C being 1 or 3, as a PNG in a data URI."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _series(frame: pd.DataFrame, column: str) -> pd.Series:
    """The finite values of a column by step; empty where the frame lacks it."""
    if column not in frame or "step" not in frame:
        return pd.Series(dtype=float)
    values = pd.to_numeric(frame.set_index("step")[column], errors="coerce")
    return values[np.isfinite(values)]


def _thin(values: pd.Series) -> pd.Series:
    """At most MAX_POINTS points: the means of neighbours, and of their steps."""
    if len(values) <= MAX_POINTS:
        return values
    group = np.arange(len(values)) * MAX_POINTS // len(values)
    steps = pd.Series(values.index, dtype=float).groupby(group).mean()
    return pd.Series(values.groupby(group).mean().to_numpy(), index=steps)


def _describe(history: pd.DataFrame, validation: pd.DataFrame, line: Line, as_percent: bool) -> str:
    """'rejected: training 0.000 to -0.120, validation ...', for those who do not see the line."""
    write: Callable[[float], str] = percent if as_percent else number
    parts = [
        f"{kind} {write(float(values.iloc[0]))} to {write(float(values.iloc[-1]))}"
        for kind, values in (
            ("training", _series(history, line.column)),
            ("validation", _series(validation, line.column)),
        )
        if len(values)
    ]
    return f"{line.label or line.column}: {', '.join(parts)}"


def _label_ends(axes: "Axes", ends: Sequence[tuple[float, str, str]]) -> None:
    """Names at the right of the axes, at their values' heights, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    labels = sorted((float((value - low) / (high - low)), text, role) for value, text, role in ends if text)
    height = -1.0
    for wanted, text, role in labels:
        height = max(wanted, height + 0.1)
        axes.text(1.03, height, text, ha="left", va="center", color=COLOR[role], transform=axes.transAxes)


def _nice(width: float) -> float:
    """The next larger of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(width))
    return float(next(power * step for step in (1, 2, 5, 10) if power * step >= width))


def svg(
    draw: Callable[["Axes"], None],
    size: tuple[float, float],
    margin: tuple[float, float, float, float],
    name: str,
    description: str,
) -> str:
    """An SVG element of `size` (user units, one CSS pixel at natural size), with `margin` left, right, bottom and top."""
    from matplotlib import style
    from matplotlib.figure import Figure

    (width, height), (left, right, bottom, top) = size, margin
    stream = io.StringIO()
    with style.context(["default", STYLE]):  # "default": a user's own matplotlibrc changes nothing here
        figure = Figure(figsize=(width / 72, height / 72))
        axes = figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height))
        draw(axes)
        nothing: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return _inline(stream.getvalue(), name, description)


def _inline(document: str, name: str, description: str) -> str:
    """A stand-alone SVG document as an element of an HTML page.

    Its stylesheet would apply to the whole page, so it goes (the page's own has those rules); ids get the prefix `name`,
    since a page has many figures; placeholder colours become CSS variables, and fonts are the page's.
    """
    variables = {color: f"var(--{role})" for role, color in COLOR.items()}
    root = ET.fromstring(document)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith("}style") or child.tag.endswith("}metadata"):
                parent.remove(child)
    used = set(re.findall(r'(?:href="#|url\(#)([\w.-]+)', document))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            value = re.sub(r"url\(#", f"url(#{name}-", value)
            value = re.sub(r"font-family: [^;]+;? ?", "", value)
            value = re.sub(r"#[0-9a-f]{6}\b", lambda match: variables.get(match[0], match[0]), value)
            if key == "d":
                value = value.replace("\n", "").strip()
            if key.endswith("href"):
                element.set("href", f"#{name}-{value[1:]}")
            elif key != "id":
                element.set(key, value)
            elif value in used:
                element.set("id", f"{name}-{value}")
        if element.text and not element.text.strip():
            element.text = None
        element.tail = None
    for key in ("version", "width", "height"):
        root.attrib.pop(key, None)
    root.set("id", name)
    root.set("role", "img")
    root.set("aria-label", description)
    root.set("class", "figure")
    root.set("style", f"max-width: {float(root.get('viewBox', '0 0 0 0').split()[2]) * 1.25:.0f}px")
    return ET.tostring(root, encoding="unicode")
