"""Removes secrets from texts before they are written or shown: passwords and tokens of addresses and of the environment.

Libraries disagree on where a password ends. SQLAlchemy takes everything up to "@", including "/" and "?"; requests ends it at
the first "/". A secret is what either of them takes for one. Exceptions quote addresses in other forms, for example
percent-encoded, so the secrets of this process's environment are also searched for in each of these forms.
"""

import functools
import html
import json
import os
import re
from collections.abc import Iterator
from urllib.parse import quote, quote_plus, unquote, unquote_plus

# Names of parameters in an address that are credentials.
CREDENTIAL = re.compile("sig|token|key|secret|pass|pwd|auth|cred|session|jwt|^x-(amz|goog)-", re.IGNORECASE)
# Names of environment variables that hold one.
VARIABLE = re.compile("(token|password|passwd|secret|key|key_id|credentials?)$", re.IGNORECASE)
ADDRESS = re.compile("(ur[il]|proxy|dsn|endpoint)$", re.IGNORECASE)  # names of those that hold an address
SHORTEST = 4  # characters; a shorter secret could be part of any word, and is removed only from addresses
PIECE = 6  # characters of the shortest part of a secret that is searched for alone
HIDDEN = "***"

_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*:)?//(?P<rest>[^\s\"'<>`]*)")
_START = re.compile(r"\A(?:[A-Za-z][A-Za-z0-9+.\-]*:)?//")
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.%]*\]|[\w.\-]*)(:[0-9]*)?")
_QUERY = re.compile(r"([?&;#])([^=&;#?]+)=([^&;#]*)")
_PLACEHOLDER = re.compile(r"\$\w+(:\$\w+)?")  # in params.yaml, for a variable of the environment


def without_secrets(text: str) -> str:
    """The text without secrets. `user:password@` is removed from every address, and other secrets become `***`."""
    for known, replacement in _known(tuple(sorted(_environment()))):
        text = known.sub(replacement.replace("\\", r"\\"), text)
    return _ADDRESS.sub(lambda match: f"{match['scheme'] or ''}//{_clean(match['rest'])}", text)


def _environment() -> Iterator[tuple[str, bool]]:
    """Values of environment variables that are secrets, or addresses (True), which may have one."""
    for name, value in os.environ.items():
        if ADDRESS.search(name) and value:
            yield value, True
        elif VARIABLE.search(name) and len(value) >= 2 * SHORTEST:
            yield value, False


@functools.lru_cache(maxsize=8)
def _known(values: tuple[tuple[str, bool], ...]) -> list[tuple[re.Pattern[str], str]]:
    """What to search for, and what to put in its place, the longest first."""
    found: dict[str, str] = {}
    for value, is_address in values:
        if not is_address:
            found |= dict.fromkeys(_forms(value), HIDDEN)
            continue
        secrets = [secret for secret in _secrets(value) if len(secret) >= SHORTEST]
        if shown := _shown(value):
            found |= dict.fromkeys(_forms(value), shown)
        for secret in secrets:
            found |= dict.fromkeys(_forms(secret), HIDDEN)
    return [
        (re.compile(_bounded(form), re.IGNORECASE if "%" in form else 0), found[form])
        for form in sorted(found, key=len, reverse=True)
        if len(form) >= SHORTEST
    ]


def _bounded(form: str) -> str:
    """A pattern for a form: as a word of its own if it is short. The end of an escape, such as %40, is no part of a word."""
    if len(form) >= 3 * SHORTEST:
        return re.escape(form)
    begin = r"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-Fa-f]{2})|(?<=\\x[0-9a-f]{2})|(?<=\\u[0-9a-f]{4}))"
    return rf"{begin}{re.escape(form)}(?![A-Za-z0-9])"


def _shown(address: str) -> str | None:
    """An address without its secrets; None if it has none."""
    begin = _START.match(address)
    start = begin.end() if begin else 0
    cleaned = address[:start] + _clean(address[start:])
    return cleaned if cleaned != address else None


def _clean(rest: str) -> str:
    """What follows `//` in an address, without its user, its password and the values of parameters that are credentials."""
    start = _host(rest)
    for match in _QUERY.finditer(rest):
        if match.start() < start < match.end() and CREDENTIAL.search(unquote(match[2])):
            # The "@" is in a token, or the password looks like a query: only what follows is certainly no secret.
            return f"{HIDDEN}{_QUERY.sub(_hidden, rest[match.end() :])}"
    return _QUERY.sub(_hidden, rest[start:])


def _hidden(match: re.Match[str]) -> str:
    before, name, value = match.groups()
    secret = value and not value.startswith("$") and CREDENTIAL.search(unquote(name))
    return f"{before}{name}={HIDDEN}" if secret else match[0]


def _host(rest: str) -> int:
    """Where the host begins: behind the last "@", unless there is neither a user nor a password.

    Behind something like `host:5000`, an "@" in the query is no end of a password.
    """
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    end = (re.split("[?#]", rest, maxsplit=1)[0] if _HOST_AND_PORT.fullmatch(authority) else rest).rfind("@")
    if end < 0 or not ({":", "@"} & set(authority)) or _PLACEHOLDER.fullmatch(rest[:end]):
        return 0
    return end + 1


def _secrets(address: str) -> Iterator[str]:
    """Everything in an address that a library could take for a user, a password or a token."""
    rest = _START.sub("", address)
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    ends = {rest[: _host(rest) - 1] if _host(rest) else "", authority.rpartition("@")[0], rest.partition("@")[0]}
    for userinfo in ends if _host(rest) else ():
        user, _, password = userinfo.partition(":")
        yield from (userinfo, password, user)
        yield from _pieces(userinfo)
    for _, name, value in _QUERY.findall(rest):
        if CREDENTIAL.search(unquote(name)):
            yield from (value, *_pieces(value))


def _pieces(secret: str) -> Iterator[str]:
    """Parts of a secret that a library can take for a port, a host or a path, and quote alone."""
    for text in (secret, unquote(secret)):
        for split in (r"[/?#@:\[\]\\]", r"\W"):
            yield from (piece for piece in re.split(split, text) if len(piece) >= PIECE)


def _forms(secret: str) -> set[str]:
    """The forms in which messages quote a secret."""
    forms = set()
    for plain in {secret, unquote(secret), unquote_plus(secret)}:
        encoded = plain.encode("utf-8", "surrogatepass")
        once = quote(encoded, safe="")
        forms |= {
            plain,
            once,
            quote(encoded),
            quote(encoded, safe=" +"),  # SQLAlchemy
            quote(encoded, safe="!#$%&'()*+,/:;=?@[]~"),  # requests
            quote_plus(encoded),
            quote(once),
            quote(once, safe=""),
            json.dumps(plain)[1:-1],
            json.dumps(plain, ensure_ascii=False)[1:-1],
            repr(plain)[1:-1],
            repr(repr(plain))[2:-2],
            ascii(plain)[1:-1],
            repr(encoded)[2:-1],
            html.escape(plain),
            " ".join(plain.split()),
        }
    return forms
