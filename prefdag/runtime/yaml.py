"""Reads YAML files as plain values, within limits, and flattens nested values to dotted keys.

The values are those that JSON has: a mapping, a list, text, a number, a boolean, null. YAML has more: dates, sets, binary data,
aliases that grow without end. A file with one of them is refused with one line, before it is loaded.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

from prefdag.lifecycle.errors import ParamsError

LARGEST = 8 * 2**20  # bytes; dvc.lock has 0.1 MB
DEEPEST = 40  # mappings and lists inside each other
MOST_REPEATED = 10_000  # values that aliases repeat
LONGEST_NUMBER = 50  # characters; a float has at most 24
INT64 = range(-(2**63), 2**63)

TAG = "tag:yaml.org,2002:"
TAGS = {f"{TAG}{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq")}
NUMBERS = {f"{TAG}int", f"{TAG}float"}
NUMBER = re.compile(r"[-+]?(0[xX][\da-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+|[\d_:]*\.?[\d_]*([eE][-+]?\d+)?)")
DATE = re.compile(r"\d{4}-\d\d?-\d\d?([Tt]|[ \t]+)?[\d:. \t]*(Z|[-+][\d:]+)?")
CONFLICT = re.compile(r"(?m)^(<{7}|={7}|>{7}|\|{7})( .*)?$")
UNPRINTABLE = re.compile("[\0\ud800-\udfff]")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping, as plain Python values. Raises `ParamsError`."""
    return parse_mapping(read_text(path), str(path))


def read_text(path: Path) -> str:
    """The text of a YAML file. Raises `ParamsError` if it is missing, no file, too large, or not UTF-8."""
    try:
        if path.exists() and not path.is_file():
            raise ParamsError(f"{path}: not a file")
        if path.stat().st_size > LARGEST:
            raise ParamsError(f"{path}: larger than {LARGEST // 2**20} MB, the most that is read")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ParamsError(f"{path}: not found; run from the repository root") from None
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path}: not valid YAML: {error}") from None


def parse_mapping(text: str, where: str) -> dict[str, Any]:
    """YAML text whose top level is a mapping, as plain Python values. Raises `ParamsError`, which starts with `where`."""
    tree = parse(text, where)
    if not isinstance(tree, dict):
        raise ParamsError(f"{where}: expected a mapping of keys to values at the top level")
    return tree


def parse(text: str, where: str) -> Any:
    """YAML text as plain Python values. Raises `ParamsError`, which starts with `where`."""
    if len(text) > LARGEST:
        raise ParamsError(f"{where}: larger than {LARGEST // 2**20} MB, the most that is read")
    try:
        if problem := _problem(YAML(typ="safe").parse(text)):
            raise ParamsError(f"{where}: {problem}")
        tree = YAML(typ="safe").load(text)
    # The parser raises its own errors, and those of Python's functions that it calls with what the file has.
    except (YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        if marker := CONFLICT.search(text):
            line = text.count("\n", 0, marker.start()) + 1
            raise ParamsError(
                f"{where}: line {line}: a conflict that Git could not merge; `git checkout --ours {where}` or `--theirs` takes "
                "one side"
            ) from None
        raise ParamsError(f"{where}: not valid YAML: {' '.join(str(error).split())[:300]}") from None
    if problem := _not_plain(tree):
        raise ParamsError(f"{where}: {problem}")
    return tree


def _problem(events: Iterable[Any]) -> str | None:
    """Why a file is not loaded, found without building any value; None if it may be loaded."""
    open_: list[tuple[str | None, int]] = []  # the anchor of every mapping and list around, and the values before it
    sizes: dict[str, int] = {}  # of what each anchor names, with its aliases expanded
    values = repeated = 0
    for event in events:
        line = f"line {event.start_mark.line + 1}"
        if isinstance(event, CollectionStartEvent):
            open_.append((event.anchor, values))
        if isinstance(event, CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor:
                sizes[anchor] = values - before
            continue
        if isinstance(event, AliasEvent):
            if any(event.anchor == anchor for anchor, _ in open_):
                return f"{line}: *{event.anchor} contains itself"
            repeated += sizes.get(event.anchor, 1)
            values += sizes.get(event.anchor, 1)
            if repeated > MOST_REPEATED:
                return f"{line}: aliases such as *{event.anchor} repeat more than {MOST_REPEATED:,} values"
        elif isinstance(event, (ScalarEvent, CollectionStartEvent)):
            values += 1
            if event.tag and event.tag not in TAGS and event.tag != "!":
                return f"{line}: the tag {_tag(event.tag)} is not allowed; a value is text, a number, a boolean or null"
        if len(open_) > DEEPEST:
            return f"{line}: more than {DEEPEST} mappings and lists inside each other"
        if isinstance(event, ScalarEvent):
            if event.anchor:
                sizes[event.anchor] = 1
            plain = event.tag is None and event.implicit[0]
            if (plain or event.tag in NUMBERS) and len(event.value) > LONGEST_NUMBER and NUMBER.fullmatch(event.value):
                return f"{line}: a number of {len(event.value):,} characters; text goes in quotes"
            if plain and DATE.fullmatch(event.value):
                return f"{line}: {event.value[:30]} is a date, which no parameter is; put text in quotes"
    return None


def _tag(tag: str) -> str:
    """A tag as it is written in a file."""
    return tag.replace(TAG, "!!")[:60]


def _not_plain(tree: Any, key: str = "") -> str | None:
    """The first value that no JSON file has, with its dotted key; None if there is none. `tree` has no loops."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name is not None and not isinstance(name, str | int | float):
                return f"{key or '(top level)'}: a key must be text, not a {type(name).__name__}"
            if problem := _not_plain(name, key) or _not_plain(value, f"{key}.{name}" if key else str(name)):
                return problem
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            if problem := _not_plain(value, f"{key}.{number}"):
                return problem
    elif isinstance(tree, str):
        if found := UNPRINTABLE.search(tree):
            return f"{key}: the character U+{ord(found[0]):04X} is not allowed"
    elif isinstance(tree, int) and tree not in INT64:
        return f"{key}: an integer of more than 64 bits"
    elif tree is not None and not isinstance(tree, int | float):
        return f"{key}: a {type(tree).__name__} is not allowed"
    return None


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings or dataclasses as one level of dotted keys. Lists and empty mappings stay values."""
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        tree = dataclasses.asdict(tree)
    if not isinstance(tree, Mapping) or (prefix and not tree):
        return {prefix: tree}
    items: dict[str, Any] = {}
    for key, value in tree.items():
        items |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return items
