"""Names and values as MLflow accepts them.

MLflow refuses a whole request because of one key: for a character such as "=" or "(", for a key that is no normal path, such
as "a//b", and for more than 250 characters. Parameters have such keys as soon as params.yaml names files.
"""

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from prefdag.lifecycle.secrets import without_secrets

KEY_LENGTH, VALUE_LENGTH = 250, 6000  # MLflow's limits, in characters
NAME_LENGTH = 250  # of a run, in MLflow's database


@functools.lru_cache(maxsize=4096)
def accepted(key: str) -> str:
    """The key itself if MLflow accepts it; otherwise each character that it refuses becomes "_", and a long key is cut.

    A colon is refused only by servers on Windows, and is rewritten for all.
    """
    parts = re.sub(r"[^/\w.\- ]", "_", key).split("/")
    path = "/".join(part.replace(".", "_") or "_" if part in ("", ".", "..") else part for part in parts)
    path = re.sub(r"^\.\.", "__", path)
    return path if len(path) <= KEY_LENGTH else _with_hash(path, key)


class Names:
    """For each key of a run, in the order in which they come, one that MLflow accepts and that no earlier key has."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._taken: set[str] = set()

    def __len__(self) -> int:
        return len(self._names)

    def __call__(self, key: str) -> str:
        if key not in self._names:
            name = accepted(key)
            self._names[key] = name if name not in self._taken else _with_hash(name, key)
            self._taken.add(self._names[key])
        return self._names[key]


def parameters(params: Mapping[str, Any]) -> dict[str, str]:
    """Flat parameters as MLflow stores them: text as it is, other values as JSON, a long value cut, without secrets.

    If two keys become the same, one that MLflow accepts as it is keeps its name, and the others get a hash.
    """
    params = {without_secrets(key): value for key, value in params.items()}  # before names hide what an address is
    name = Names()
    for key in sorted(params, key=lambda key: accepted(key) != key):
        name(key)
    return {name(key): _value(value if isinstance(value, str) else json.dumps(value)) for key, value in params.items()}


def _value(text: str) -> str:
    text = without_secrets(text)
    if len(text) <= VALUE_LENGTH:
        return text
    ending = f"... ({len(text)} characters, SHA-256 {_hash(text)})"
    return text[: VALUE_LENGTH - len(ending)] + ending


def _with_hash(name: str, key: str) -> str:
    ending = f"_{_hash(key)[:12]}"
    return name[: KEY_LENGTH - len(ending)] + ending


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
