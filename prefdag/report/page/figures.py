"""Figures as inline SVG, and training curves. Pure functions: the same table always gives the same bytes.

matplotlib draws. Colours are roles ("policy", "chosen"). They are drawn as placeholder values and written as CSS variables,
so that the page's stylesheet decides how they look in light and in dark mode. Every figure describes its content in words
(`aria-label`) for readers who cannot see it.
"""

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from prefdag.report.page.numbers import number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROLES = ("ink", "muted", "grid", "base", "reference", "policy", "control", "chosen", "rejected", "first", "second")
COLOR = {role: f"#0000{i:02x}" for i, role in enumerate(ROLES, start=1)}
STYLE = {
    "svg.fonttype": "none",  # keeps text as text, which can be read, searched and set in the page's font
    "svg.hashsalt": "prefdag",  # makes ids the same in every build
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
MAX_POINTS = 240  # per line: more than a screen resolves, and the page stays small for runs of any length


@dataclass(frozen=True)
class Line:
    """A column to draw, in the colour of `role`, with `label` at the end of the line."""

    column: str
    role: str
    label: str = ""


def has(history: pd.DataFrame, validation: pd.DataFrame, lines: Sequence[Line]) -> bool:
    """Whether any line has a value to draw."""
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
    """Columns against the optimiser step: training as a faint line, validation as dots on a strong one.

    Args:
        history, validation: columns that are missing from a frame are left out.
        name: makes the ids unique on the page.
        level: a value to compare with, and its label.
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


def _series(frame: pd.DataFrame, column: str) -> pd.Series:
    """The finite values of a column by step; empty if the frame has no such column."""
    if column not in frame or "step" not in frame:
        return pd.Series(dtype=float)
    values = pd.to_numeric(frame.set_index("step")[column], errors="coerce")
    return values[np.isfinite(values)]


def _thin(values: pd.Series) -> pd.Series:
    """At most MAX_POINTS points: means of neighbouring values and of their steps."""
    if len(values) <= MAX_POINTS:
        return values
    group = np.arange(len(values)) * MAX_POINTS // len(values)
    steps = pd.Series(values.index, dtype=float).groupby(group).mean()
    return pd.Series(values.groupby(group).mean().to_numpy(), index=steps)


def _describe(history: pd.DataFrame, validation: pd.DataFrame, line: Line, as_percent: bool) -> str:
    """'rejected: training 0.000 to -0.120, validation ...', for readers who cannot see the line."""
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
    """Labels to the right of the axes, at the height of their values, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    labels = sorted((float((value - low) / (high - low)), text, role) for value, text, role in ends if text)
    height = -1.0
    for wanted, text, role in labels:
        height = max(wanted, height + 0.1)
        axes.text(1.03, height, text, ha="left", va="center", color=COLOR[role], transform=axes.transAxes)


def svg(
    draw: Callable[["Axes"], None],
    size: tuple[float, float],
    margin: tuple[float, float, float, float],
    name: str,
    description: str,
) -> str:
    """An SVG element.

    Args:
        draw: draws on the axes.
        size: width and height in user units, one CSS pixel each at natural size.
        margin: around the axes: left, right, bottom, top.
        name: makes the ids unique on the page.
        description: becomes the `aria-label`.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    (width, height), (left, right, bottom, top) = size, margin
    stream = io.StringIO()
    with style.context(["default", STYLE]):  # "default" ignores the user's matplotlibrc
        figure = Figure(figsize=(width / 72, height / 72))
        axes = figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height))
        draw(axes)
        no_metadata: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=no_metadata)
    return _inline(stream.getvalue(), name, description)


def _inline(document: str, name: str, description: str) -> str:
    """A stand-alone SVG document as an element of an HTML page.

    The document's stylesheet is removed, because it would apply to the whole page; the page's own has those rules. Ids get
    the prefix `name`, because a page has many figures. Placeholder colours become CSS variables. Fonts are the page's.
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
