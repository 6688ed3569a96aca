"""The figures of a page as files of their own, for MLflow and for slides: the same elements, with the page's colours."""

import re

from prefdag.report.page.report_page import TEMPLATES

FIGURE = re.compile(r'<svg [^>]*\bid="([\w-]+)".*?</svg>', re.DOTALL)


def documents(html: str) -> dict[str, str]:
    """Every figure of a page by the name of its file, as a stand-alone SVG document in light and dark."""
    style = _style((TEMPLATES / "style.css").read_text("utf-8"))
    return {f"{match[1]}.svg": _document(match[0], style) for match in FIGURE.finditer(html)}


def _style(css: str) -> str:
    """Of the page's stylesheet what figures need: the colours and fonts at its top, and the rules of figures."""
    colours, _, rules = css.partition("* {")
    figure = "".join(f"{line}\n" for line in rules.splitlines() if line.startswith("svg.figure"))
    return f"{colours}{figure}svg {{ background: var(--paper); color: var(--ink); }}\n"


def _document(svg: str, style: str) -> str:
    """An SVG element of an HTML page as a document."""
    tag, _, rest = svg.partition(">")
    tag = tag.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return f"{tag}><style>\n{style}</style>{rest}\n"
