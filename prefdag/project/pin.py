"""`prefdag pin`: writes the hashes and commits of the sources into params.yaml."""

import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from prefdag.check_params import check_params
from prefdag.config.sources import ImageSource
from prefdag.lifecycle.errors import ParamsError, SourceError
from prefdag.project.edit_yaml import set_values
from prefdag.project.pinning import pins
from prefdag.runtime.artifacts import writing
from prefdag.runtime.yaml import read_yaml
from prefdag.sources.pins import nearest

PARAMS = Path("params.yaml")
PINS = {"pypi": "sha256", "hub": "revision", "path": "sha256", "url": "sha256", "dvc": "revision", "cifar10": None}
_SOURCE: TypeAdapter[Any] = TypeAdapter(ImageSource)

Keys = tuple[str, ...]


@dataclass(frozen=True)
class Pinned:
    """One pin before and after."""

    keys: Keys
    old: str | None
    new: str


@dataclass
class Result:
    """What `pin` changed, or would change, and an error for each source that it could not pin."""

    changes: list[Pinned] = field(default_factory=list)
    errors: list[SourceError] = field(default_factory=list)


def pin(only: Collection[str] = (), *, check: bool = False) -> Result:
    """Write the pins that are missing, and those of local paths that changed, into params.yaml.

    Args:
        only: keys of sources or of sections above them, such as download_pairs. Their pinned files are fetched again.
        check: whether to leave params.yaml as it is.

    Raises:
        ParamsError: params.yaml has another mistake, or one of `only` has no source.
    """
    tree = read_yaml(PARAMS)
    complete = copy.deepcopy(tree)
    for _, source in sources(complete):
        if missing := PINS[source["kind"]]:
            source.setdefault(missing, None)
    check_params(complete, PARAMS)
    result = Result()
    for keys, source in _chosen(dict(sources(complete)), only).items():
        try:
            right = pins(_SOURCE.validate_python(source, strict=False), again=bool(only))
        except SourceError as error:
            result.errors.append(SourceError(f"{PARAMS}: {'.'.join(keys)}: {error}"))
            continue
        for place, new in _flat(right):
            old: Any = source
            for key in place:
                old = old[key]
            if old != new:
                result.changes.append(Pinned((*keys, *place), old, new))
    if result.changes and not check:
        text = PARAMS.read_bytes().decode("utf-8")
        edited = set_values(text, {change.keys: change.new for change in result.changes})
        with writing(PARAMS) as temporary:
            temporary.write_bytes(edited.encode("utf-8"))
    return result


def sources(tree: Mapping[str, Any], above: Keys = ()) -> Iterator[tuple[Keys, dict[str, Any]]]:
    """Every source in a parameter tree, with its keys. The key of an item of a list is its number, as text."""
    for key, value in tree.items():
        inside = {str(i): item for i, item in enumerate(value)} if isinstance(value, list) else value
        if isinstance(inside, dict):
            if inside.get("kind") in PINS:
                yield (*above, key), inside
            else:
                yield from sources(inside, (*above, key))


def _chosen(found: dict[Keys, dict[str, Any]], only: Collection[str]) -> dict[Keys, dict[str, Any]]:
    """The sources at or below the keys in `only`; all of them if it is empty."""
    for name in only:
        if not any(_below(keys, name) for keys in found):
            raise ParamsError(f"{PARAMS}: {name}: no source; there is {nearest(name, map('.'.join, found))}")
    return {keys: source for keys, source in found.items() if not only or any(_below(keys, name) for name in only)}


def _below(keys: Keys, name: str) -> bool:
    return ".".join(keys) == name or ".".join(keys).startswith(f"{name}.")


def _flat(right: Mapping[str, Any], above: Keys = ()) -> Iterator[tuple[Keys, str]]:
    for key, value in right.items():
        if isinstance(value, dict):
            yield from _flat(value, (*above, key))
        else:
            yield (*above, key), value
