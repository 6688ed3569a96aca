"""Random addresses with secrets, and the texts that quote them."""

import json
import random
import string
from urllib.parse import quote, quote_plus, unquote

import requests
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

ODD = "/:@?#%&=+!$'()*,;[]{}|^~ \"\\<>é中\u2028"


def chunk(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_letters + string.digits, k=8))


def secret(rng: random.Random, odd: str) -> tuple[str, list[str]]:
    """A secret with odd characters in between, and its parts, none of which may remain."""
    parts = [chunk(rng) for _ in range(rng.randrange(1, 4))]
    text = parts[0] + "".join(rng.choice(odd) + part for part in parts[1:])
    return text, parts


SCHEMES = ["http://", "https://", "postgresql://", "mysql+pymysql://", "mssql+pyodbc://", "", "//"]
HOSTS = ["db.example", "db.example:5432", "127.0.0.1:5000", "[::1]:5000", "[fe80::1]", "localhost"]
PARAMETERS = ["token", "access_token", "api_key", "X-Amz-Signature", "sig", "%74oken", "password", "sslpassword"]


def address(rng: random.Random) -> tuple[str, list[str]]:
    """A random address, and the parts of its secrets."""
    encoded = rng.random() < 0.4

    def put(text: str) -> str:
        return quote(text, safe="") if encoded else text

    user, users = secret(rng, ODD if encoded else ".-_+%")
    password, passwords = secret(rng, ODD)
    kind = rng.choice(["both", "both", "both", "user", "none", "sqlite"])
    query, hidden = "", []
    if kind in ("none", "sqlite") or rng.random() < 0.4:
        value, hidden = secret(rng, "/:@?%+!$'()*,[]~é" if not encoded else ODD)
        query = f"?sslmode=require&{rng.choice(PARAMETERS)}={put(value)}&x=1"
    path = rng.choice(["", "/", "/mlflow", "/a/b.c"])
    if kind == "sqlite":
        return f"sqlite:////home/bob/mlflow.db{query}", hidden
    scheme = rng.choice(SCHEMES if kind != "none" else SCHEMES[:5])
    if kind == "both":
        return f"{scheme}{put(user)}:{put(password)}@{rng.choice(HOSTS)}{path}{query}", users + passwords + hidden
    if kind == "user":
        return f"{scheme or 'https://'}{put(user)}@{rng.choice(HOSTS)}{path}{query}", users + hidden
    return f"{scheme}{rng.choice(HOSTS)}{path}{query}", hidden


def messages(uri: str) -> list[str]:
    """Texts as logs and exceptions have them."""
    texts = [uri, f"cannot open {uri}: no such host", f"url={uri!r}", json.dumps({"uri": uri}), str(uri.encode())]
    texts += [quote(uri), quote(uri, safe=""), quote_plus(uri), unquote(uri), repr(repr(uri)), ascii(uri)]
    texts += ["next=" + quote(quote(uri, safe=""), safe="")]
    try:
        texts.append(make_url(uri).render_as_string(hide_password=False))
        texts.append(repr(make_url(uri).translate_connect_args()))
    except (ArgumentError, ValueError) as error:
        texts.append(str(error))
    try:
        texts.append(str(requests.Request("GET", uri).prepare().url))
    except (requests.RequestException, ValueError) as error:
        texts.append(str(error))
    return texts
