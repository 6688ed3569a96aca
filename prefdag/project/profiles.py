"""Profiles: small overlays on params.yaml, such as `tiny`, which makes the whole DAG a matter of seconds.

A profile is laid over the *committed* params.yaml (`git show HEAD:params.yaml`), not over the file as it stands, so
`tiny` and then `cifar10` is cifar10, not a mixture, and `default` is no overlay at all. Git keeps the default because
it already does: a pristine copy in profiles/ would be the same values twice, and not the default of whoever commits
values of their own. The price is that uncommitted edits are undone; `apply` returns every value that it changes, for
the command to show.

A mapping is merged with the one that it overlays, except where it has a `kind`: a source is one value, replaced as a
whole, since its kind decides what its other keys are.
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

from prefdag.config.check import check_params
from prefdag.runtime.artifacts import writing
from prefdag.runtime.errors import ParamsError
from prefdag.runtime.yaml import read_yaml

PARAMS = Path("params.yaml")
FOLDER = Path("profiles")
DEFAULT = "default"


@dataclass(frozen=True)
class Change:
    """One value of params.yaml before and after; `None` where the key is not there, or null."""

    key: str
    old: Any
    new: Any
    of_profile: bool  # False: the value goes back to the committed one


def list_profiles() -> dict[str, str]:
    """The names of all profiles, sorted after `default`, and what the first line of each says about it."""
    firsts = {path.stem: path.read_text("utf-8").partition("\n")[0] for path in FOLDER.glob("*.yaml")}
    return {DEFAULT: "params.yaml as it is committed"} | {name: firsts[name].lstrip("# ") for name in sorted(firsts)}


def apply(name: str) -> list[Change]:
    """Write profile `name`, laid over the committed parameters, to params.yaml; return what that changes.

    Raises:
        ParamsError: there is no such profile, one of its keys or values is wrong, or git has no params.yaml.
    """
    before, overlay, text = values(read_yaml(PARAMS)), load(name), committed(PARAMS)
    base = _round_trip().load(text)
    check_params(base, Path(f"{PARAMS} (committed)"))
    check_params(merge(base, overlay), FOLDER / f"{name}.yaml")
    with writing(PARAMS) as temporary:
        temporary.write_text(render(text, overlay) if overlay else text, "utf-8")
    after, chosen = values(read_yaml(PARAMS)), values(overlay)
    keys = [key for key in before | after if before.get(key) != after.get(key)]
    return [Change(key, before.get(key), after.get(key), of_profile=key in chosen) for key in keys]


def load(name: str) -> CommentedMap:
    """The overlay of a profile; empty for `default`. Raises `ParamsError` where there is none, or no mapping."""
    if name == DEFAULT:
        return CommentedMap()
    path = FOLDER / f"{name}.yaml"
    if name not in (known := list_profiles()):
        guess = get_close_matches(name, known, n=1)
        hint = f"did you mean '{guess[0]}'?" if guess else f"there are {', '.join(known)}"
        raise ParamsError(f"{path}: no such profile; {hint}")
    read_yaml(path)  # says in one line what is wrong with the file; below it is read again, with its formatting
    return _round_trip().load(path.read_text("utf-8"))


def committed(path: Path) -> str:
    """A file's text at Git's HEAD. Raises `ParamsError` where there is none."""
    command = ["git", "show", f"HEAD:./{path.as_posix()}"]
    shown = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if shown.returncode:
        raise ParamsError(f"{path}: Git has no committed version to lay a profile over; commit {path} first")
    return shown.stdout


def values(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value of a tree of parameters under its dotted key; a source is one value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and "kind" not in value
        flat |= values(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `base`, with those of `overlay` in their place. Keys that only `overlay` has are kept, too."""
    merged = dict(base)
    for key, value in overlay.items():
        merged[key] = merge(base[key], value) if _both_mappings(base.get(key), value) else value
    return merged


def render(text: str, overlay: Mapping[str, Any]) -> str:
    """`text`, a YAML mapping, with the values of `overlay`; comments, order and formatting stay.

    Every key of `overlay` must be one of `text`.
    """
    # ruamel hangs the comments *after* a block on the block's last line, and loses them with it. So the lines of a
    # block are replaced as text, the last block first, for the line numbers of the others to hold; scalars by ruamel.
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
    """Mapping, key and new value of everything in `tree` that `overlay` replaces; a source is one value."""
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
    """`text` with other lines for the `key` at `position` (line, column), and for what is indented below it."""
    line, indent = position
    lines = text.splitlines(keepends=True)
    end = line + 1
    for i in range(line + 1, len(lines)):
        content = lines[i].strip()
        if content and len(lines[i]) - len(lines[i].lstrip()) <= indent:
            break
        if content:
            end = i + 1  # blank lines after the block belong to what follows
    new = _dump(CommentedMap({key: value})).rstrip("\n").splitlines()
    if comment := re.search(r"\s+#.*", lines[line]):  # that of the key itself stays
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
