"""Checks the whole of params.yaml: a mistake anywhere is reported in one line before a stage does anything.

No stage depends on this module, since it only accepts or rejects. A stage gets its values from its own sections' classes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from prefdag.config.judges import is_trained
from prefdag.config.params import Params
from prefdag.lifecycle.errors import ParamsError, suggestion
from prefdag.runtime.yaml import read_yaml

T = TypeVar("T")
_PARAMS = TypeAdapter(Params)
MOVED = {"dpo_text.health": "health_text", "dpo_image.health": "health_image"}  # old key: its section now

PINS = {"sha256", "revision"}  # of a source


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check the whole file.

    Raises:
        ParamsError: the file is missing or not YAML, or a key is unknown, missing, of the wrong type or out of range.
    """
    return check_params(read_yaml(path), path)


def check_params(tree: Mapping[str, Any], path: Path) -> Params:
    """The typed form of `tree`, read from `path`. Raises `ParamsError` as `load_params` does."""
    params = checked(_PARAMS, tree, str(path))
    if not params.reward_model.train:
        for name, judges in (params.rounds.judges() | {"judge_text.judge": [params.judge_text.judge]}).items():
            if any(map(is_trained, judges)):
                raise ParamsError(f"{path}: {name}.source: trained, but reward_model.train is false; set it to true")
    return params


def checked(kind: TypeAdapter[T], tree: Mapping[str, Any], where: str) -> T:
    """The typed form of `tree`. Raises `ParamsError`, which starts with `where`, and names the first mistake."""
    try:
        # JSON mode is strict about types, but accepts a mapping for a dataclass.
        return kind.validate_json(json.dumps(tree))
    except ValidationError as error:
        raise ParamsError(f"{where}: {_one_line(error, tree)}") from None


def _one_line(error: ValidationError, tree: Mapping[str, Any]) -> str:
    """The first mistake as `dotted.key: problem; remedy`."""
    mistakes = [(_walk(tree, e["loc"]), e) for e in error.errors()]
    unknown = [m for m in mistakes if m[1]["type"] == "unexpected_keyword_argument"]
    (keys, parent), first = (unknown or mistakes)[0]
    dotted = ".".join(keys)
    if first["type"] == "unexpected_keyword_argument":
        if dotted in MOVED:
            return f"{dotted}: moved; it is now the section {MOVED[dotted]}, beside {keys[0]}"
        # A misspelt key is also missing under its right name, since every key is required: guess missing siblings first.
        missing = [k[-1] for (k, _), e in mistakes if e["type"] == "missing" and k[:-1] == keys[:-1]]
        known = [*missing, *(key for key in parent if key != keys[-1])]
        return f"{dotted}: unknown key; {suggestion(keys[-1], known, 'remove it')}"
    if first["type"] == "missing":
        pin = "; `prefdag pin` writes it" if keys[-1] in PINS and "kind" in parent else ""
        return f"{dotted}: missing; every key is required{pin}"
    given = "" if isinstance(first["input"], Mapping) else f", not {first['input']!r}"
    if first["type"] == "value_error":  # raised by one of our validators
        return f"{dotted}: {first['ctx']['error']}"
    return f"{dotted}: {first['msg'][0].lower()}{first['msg'][1:]}{given}"


def _walk(tree: Mapping[str, Any], loc: tuple[int | str, ...]) -> tuple[list[str], Mapping[str, Any]]:
    """The keys of `loc`, and the mapping that holds the last one.

    Inside a source, pydantic adds the kind to `loc`, although it is not a key: `("source", "path", "sha256")`.
    """
    keys: list[str] = []
    node: Any = tree
    parent: Mapping[str, Any] = tree
    tagged: Any = None
    for i, part in enumerate(loc):
        if str(part).startswith(("<", "[")):  # our tags (see `types.shape`), and pydantic's for the key of a mapping
            continue
        if isinstance(node, Mapping):
            if node.get("kind") == part and node is not tagged and i < len(loc) - 1:
                tagged = node
                continue
            parent = node
        keys.append(str(part))
        inside = part in node if isinstance(node, Mapping) else isinstance(node, list) and isinstance(part, int)
        node = node[part] if inside else None
    return keys or ["(top level)"], parent
