"""The one script of a page, and the policy that keeps a browser from running any other and from using the network.

Everything that comes from data is escaped. If an escape were ever missed, the text still would not run: the browser runs only
the script whose SHA-256 is in the policy, and no script in an element, an attribute or an address.
"""

import base64
import hashlib
from pathlib import Path

from markupsafe import Markup

PATH = Path(__file__).parents[1] / "templates" / "tables.js"


def script() -> Markup:
    """The content of the page's script element: sorting and filtering of tables."""
    return Markup(PATH.read_text("utf-8"))


def policy() -> str:
    """The page's Content-Security-Policy. Figures and scales use inline styles, pictures are data URLs."""
    digest = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
