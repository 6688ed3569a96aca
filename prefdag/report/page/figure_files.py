"""The figures of a page as stand-alone SVG files, for MLflow and for slides, in the page's colours."""

import re

from prefdag.report.page.environment import TEMPLATES

FIGURE = re.compile(r'<svg [^>]*\bid="([\w-]+)".*?</svg>', re.DOTALL)


def documents(html: str) -> dict[str, str]:
    """Every figure of a page as a stand-alone SVG document for light and dark mode, by file name."""
    style = _style((TEMPLATES / "style.css").read_text("utf-8"))
    return {f"{match[1]}.svg": _document(match[0], style) for match in FIGURE.finditer(html)}


def _style(css: str) -> str:
    """The part of the page's stylesheet that figures need: the colours and fonts at its top, and the rules for figures."""
    colours, _, rules = css.partition("* {")
    figure = "".join(f"{line}\n" for line in rules.splitlines() if line.startswith("svg.figure"))
    return f"{colours}{figure}svg {{ background: var(--paper); color: var(--ink); }}\n"


def _document(svg: str, style: str) -> str:
    """An SVG element of an HTML page as a stand-alone document."""
    tag, _, rest = svg.partition(">")
    tag = tag.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return f"{tag}><style>\n{style}</style>{rest}\n"
