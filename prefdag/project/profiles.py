"""Profiles: small overlays on params.yaml, such as `tiny`, with which the whole DAG runs in seconds.

A profile is applied to the *committed* params.yaml (`git show HEAD:params.yaml`), not to the file in the working tree. So
`tiny` followed by `cifar10` gives cifar10 and not a mixture, and `default` is an empty overlay. Git already stores the
default: a copy in profiles/ would duplicate it, and would be wrong for users who commit their own values. The price is that
uncommitted edits are undone. So `apply` refuses if there are any, unless it is forced to; it then keeps a copy of the file.
It returns every value that it changes, so that the command can show them.

Profiles are in the folder `profiles` of the project. Those that come with prefdag are known too, unless the project has one of
the same name. A profile may also be any .yaml file, named by its path.

A mapping is merged with the one it overlays, unless it has a `kind`. A source is one value and is replaced as a whole,
since its kind decides which other keys it has.
"""

import hashlib
import io
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from prefdag.check_params import check_params
from prefdag.lifecycle.errors import ParamsError, suggestion
from prefdag.project.shipped import FILES
from prefdag.runtime.artifacts import scratch, writing
from prefdag.runtime.yaml import parse_mapping, read_text, read_yaml

PARAMS = Path("params.yaml")
FOLDER = Path("profiles")
INCLUDED = FILES / "profiles"  # those of prefdag itself
DEFAULT = "default"
APPLIED = "profile.sha256"  # in the scratch folder: the hash of params.yaml as `apply` wrote it last


@dataclass(frozen=True)
class ParameterChange:
    """One value of params.yaml before and after; `None` if the key is missing or null."""

    key: str
    old: Any
    new: Any
    of_profile: bool  # False: the value returns to the committed one


class Applied(NamedTuple):
    """What `apply` changed, and the copy that it made of params.yaml as it was, if that had edits of its own."""

    changes: list[ParameterChange]
    backup: Path | None


def list_profiles() -> dict[str, str]:
    """The first line of every profile by name: `default` first, the others sorted."""
    firsts = {name: read_text(path).partition("\n")[0] for name, path in _files().items()}
    return {DEFAULT: "the committed params.yaml"} | {name: firsts[name].lstrip("# ") for name in sorted(firsts)}


def apply(name: str, *, force: bool = False) -> Applied:
    """Apply profile `name` to the committed parameters, and write the result to params.yaml.

    Args:
        force: whether to undo edits that are neither committed nor of a profile.

    Raises:
        ParamsError: there is no such profile, one of its keys or values is wrong, params.yaml has edits, or Git has no
            params.yaml.
    """
    overlay, text = load(name), committed(PARAMS)
    base = parse_mapping(text, f"{PARAMS} (committed)")
    check_params(base, Path(f"{PARAMS} (committed)"))
    written = under(name, text)
    before, backup = _before(), None
    if _has_edits(text, written):
        if not force:
            keys = [key for key, value in values(base).items() if before.get(key) != value]
            named = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "") if before else "not valid YAML"
            raise ParamsError(
                f"{PARAMS}: has edits that are not committed ({named or 'comments'}); commit them, or undo them with "
                f"`prefdag profile {name} --force`, which keeps a copy"
            )
        backup = _back_up()
    with writing(PARAMS) as temporary:
        temporary.write_text(written, "utf-8")
    record = scratch(APPLIED)
    record.parent.mkdir(exist_ok=True)
    record.write_text(_digest(PARAMS.read_bytes()), "utf-8")
    after, chosen = values(read_yaml(PARAMS)), values(overlay)
    keys = [key for key in before | after if before.get(key) != after.get(key)]
    changes = [ParameterChange(key, before.get(key), after.get(key), of_profile=key in chosen) for key in keys]
    return Applied(changes, backup)


def under(name: str, text: str) -> str:
    """`text`, a params.yaml, under a profile. Raises `ParamsError` if there is no such profile, or a key of it is wrong."""
    overlay = load(name)
    check_params(merge(_round_trip().load(text), overlay), _path(name))
    return render(text, overlay) if overlay else text


def load(name: str) -> CommentedMap:
    """The overlay of a profile; empty for `default`. Raises `ParamsError` if it does not exist or is not a mapping."""
    if name == DEFAULT:
        return CommentedMap()
    path = _path(name)
    if not path.is_file():
        known = list_profiles()
        hint = suggestion(name, known, f"choose from {', '.join(known)}")
        raise ParamsError(f"{path}: no such {'file' if _is_path(name) else 'profile'}; {hint}")
    text = read_text(path)
    parse_mapping(
        text, str(path)
    )  # reports a broken file in one line; the next line reads it again with its formatting
    return _round_trip().load(text)


def _files() -> dict[str, Path]:
    """The profiles by name. The project's own come before those of prefdag."""
    folders = (INCLUDED, FOLDER)
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def _is_path(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) or "/" in name


def _path(name: str) -> Path:
    """The file of a profile, which need not exist."""
    if _is_path(name):
        return Path(name).expanduser()
    return _files().get(name, FOLDER / f"{name}.yaml")


def _before() -> dict[str, Any]:
    """The values in params.yaml; none if it is missing or broken."""
    try:
        return values(read_yaml(PARAMS))
    except ParamsError:
        return {}


def _has_edits(text: str, written: str) -> bool:
    """Whether params.yaml is neither missing, nor as committed (`text`), nor as `apply` wrote it or would write it."""
    if not PARAMS.exists():
        return False
    now = PARAMS.read_bytes()
    record = scratch(APPLIED)
    applied = record.exists() and record.read_text("utf-8") == _digest(now)
    return not applied and now not in (text.encode(), written.encode())


def _back_up() -> Path:
    """Copy params.yaml to the scratch folder, under its hash. Returns the copy's path."""
    content = PARAMS.read_bytes()
    path = Path(".prefdag", f"params-{_digest(content)[:12]}.yaml")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def committed(path: Path) -> str:
    """A file's text at Git's HEAD. Raises `ParamsError` if Git does not have it."""
    command = ["git", "show", f"HEAD:./{path.as_posix()}"]
    shown = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if shown.returncode:
        looked = subprocess.run(["git", "rev-parse"], capture_output=True, text=True, errors="replace", check=False)
        if "dubious ownership" in looked.stderr:
            raise ParamsError(
                f"{path}: the repository belongs to another user: {' '.join(looked.stderr.split())[:300]}"
            )
        repository = looked.returncode == 0
        remedy = f"commit {path} first" if repository else "first run `git init && git add -A && git commit -m Start`"
        raise ParamsError(f"{path}: Git has no committed version to apply a profile to; {remedy}")
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
