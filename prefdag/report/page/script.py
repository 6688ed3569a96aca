"""The one script of a page, and the policy under which a browser runs nothing else and asks nothing of any network.

Everything that comes from data is escaped. Should an escape ever be missed, the text still would not run: a browser takes
the script whose SHA-256 the policy names, and no other, whether element, attribute or address.
"""

import base64
import hashlib
from pathlib import Path

from markupsafe import Markup

PATH = Path(__file__).parents[1] / "templates" / "tables.js"


def script() -> Markup:
    """Sorting and filtering of tables, as it stands between the page's script tags."""
    return Markup(PATH.read_text("utf-8"))


def policy() -> str:
    """The page's Content-Security-Policy. Figures and scales have inline styles, pictures are data URLs."""
    digest = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
