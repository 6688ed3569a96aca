"""Profiles: small overlays on params.yaml, such as `tiny`, with which the whole DAG runs in seconds.

A profile is applied to the *committed* params.yaml (`git show HEAD:params.yaml`), not to the file in the working tree. So
`tiny` followed by `cifar10` gives cifar10 and not a mixture, and `default` is an empty overlay. Git already stores the
default: a copy in profiles/ would duplicate it, and would be wrong for users who commit their own values. The price is that
uncommitted edits are undone; `apply` returns every value that it changes, so that the command can show them.

A mapping is merged with the one it overlays, unless it has a `kind`. A source is one value and is replaced as a whole,
since its kind decides which other keys it has.
"""

import io
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from prefdag.check_params import check_params
from prefdag.lifecycle.errors import ParamsError
from prefdag.runtime.artifacts import writing
from prefdag.runtime.yaml import read_yaml

PARAMS = Path("params.yaml")
FOLDER = Path("profiles")
DEFAULT = "default"


@dataclass(frozen=True)
class ParameterChange:
    """One value of params.yaml before and after; `None` if the key is missing or null."""

    key: str
    old: Any
    new: Any
    of_profile: bool  # False: the value returns to the committed one


def list_profiles() -> dict[str, str]:
    """The first line of every profile by name: `default` first, the others sorted."""
    firsts = {path.stem: path.read_text("utf-8").partition("\n")[0] for path in FOLDER.glob("*.yaml")}
    return {DEFAULT: "the committed params.yaml"} | {name: firsts[name].lstrip("# ") for name in sorted(firsts)}


def apply(name: str) -> list[ParameterChange]:
    """Apply profile `name` to the committed parameters, write the result to params.yaml, and return what changed.

    Raises:
        ParamsError: there is no such profile, one of its keys or values is wrong, or Git has no params.yaml.
    """
    before, overlay, text = values(read_yaml(PARAMS)), load(name), committed(PARAMS)
    base = _round_trip().load(text)
    check_params(base, Path(f"{PARAMS} (committed)"))
    check_params(merge(base, overlay), FOLDER / f"{name}.yaml")
    with writing(PARAMS) as temporary:
        temporary.write_text(render(text, overlay) if overlay else text, "utf-8")
    after, chosen = values(read_yaml(PARAMS)), values(overlay)
    keys = [key for key in before | after if before.get(key) != after.get(key)]
    return [ParameterChange(key, before.get(key), after.get(key), of_profile=key in chosen) for key in keys]


def load(name: str) -> CommentedMap:
    """The overlay of a profile; empty for `default`. Raises `ParamsError` if it does not exist or is not a mapping."""
    if name == DEFAULT:
        return CommentedMap()
    path = FOLDER / f"{name}.yaml"
    if name not in (known := list_profiles()):
        guess = get_close_matches(name, known, n=1)
        hint = f"did you mean '{guess[0]}'?" if guess else f"choose from {', '.join(known)}"
        raise ParamsError(f"{path}: no such profile; {hint}")
    read_yaml(path)  # reports a broken file in one line; the next line reads it again with its formatting
    return _round_trip().load(path.read_text("utf-8"))


def committed(path: Path) -> str:
    """A file's text at Git's HEAD. Raises `ParamsError` if Git does not have it."""
    command = ["git", "show", f"HEAD:./{path.as_posix()}"]
    shown = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if shown.returncode:
        raise ParamsError(f"{path}: Git has no committed version to apply a profile to; commit {path} first")
    return shown.stdout


def values(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a parameter tree by dotted key. A source is one value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and "kind" not in value
        flat |= values(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `overlay` on top, including keys that only `overlay` has."""
    merged = dict(base)
    for key, value in overlay.items():
        merged[key] = merge(base[key], value) if _both_mappings(base.get(key), value) else value
    return merged


def render(text: str, overlay: Mapping[str, Any]) -> str:
    """Replace values in `text`, a YAML mapping, by those of `overlay`. Comments, order and formatting are kept.

    Every key of `overlay` must exist in `text`.
    """
    # ruamel attaches the comments *after* a block to its last line and loses them with it. Blocks are therefore replaced
    # as lines of text, the last block first so that the other line numbers stay valid. ruamel replaces the scalars.
    for parent, key, value in sorted(_replaced(_round_trip().load(text), overlay), key=_line, reverse=True):
        if _is_block(parent, key) or isinstance(value, Mapping):
            text = _replace_lines(text, parent.lc.key(key), key, value)
    tree = _round_trip().load(text)
    for parent, key, value in _replaced(tree, overlay):
        if parent[key] != value:
            parent[key] = value
    return _dump(tree)


def _both_mappings(old: Any, new: Any) -> bool:
    return isinstance(old, Mapping) and isinstance(new, Mapping) and "kind" not in new


def _replaced(tree: CommentedMap, overlay: Mapping[str, Any]) -> Iterator[tuple[CommentedMap, str, Any]]:
    """Mapping, key and new value of everything in `tree` that `overlay` replaces. A source is one value."""
    for key, value in overlay.items():
        if _both_mappings(tree[key], value):
            yield from _replaced(tree[key], value)
        else:
            yield tree, key, value


def _line(item: tuple[CommentedMap, str, Any]) -> int:
    parent, key, _ = item
    return int(parent.lc.key(key)[0])


def _is_block(parent: CommentedMap, key: str) -> bool:
    """Whether the value starts on a line below its key."""
    return bool(parent.lc.value(key)[0] > parent.lc.key(key)[0])


def _replace_lines(text: str, position: tuple[int, int], key: str, value: Any) -> str:
    """`text` with the lines of the `key` at `position` (line, column), and those indented below it, replaced."""
    line, indent = position
    lines = text.splitlines(keepends=True)
    end = line + 1
    for i in range(line + 1, len(lines)):
        content = lines[i].strip()
        if content and len(lines[i]) - len(lines[i].lstrip()) <= indent:
            break
        if content:
            end = i + 1  # blank lines after the block belong to the next key
    new = _dump(CommentedMap({key: value})).rstrip("\n").splitlines()
    if comment := re.search(r"\s+#.*", lines[line]):  # the comment on the key's own line stays
        new[0] += comment[0]
    return "".join([*lines[:line], *(f"{' ' * indent}{row}\n" for row in new), *lines[end:]])


def _round_trip() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096  # never wrap
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    return yaml


def _dump(tree: CommentedMap) -> str:
    stream = io.StringIO()
    _round_trip().dump(tree, stream)
    return stream.getvalue()
