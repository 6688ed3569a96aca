"""Replaces single values in the text of a YAML file. Every other byte stays: comments, indentation, line ends."""

from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from prefdag.lifecycle.errors import ParamsError
from prefdag.runtime.yaml import parse

Path_ = tuple[str, ...]


def set_values(text: str, values: Mapping[Path_, str]) -> str:
    """`text`, a YAML mapping, with text values at the given keys. Only the last key of each may be missing.

    The key of an item of a list is its number, as text.

    Raises:
        ParamsError: a value cannot be replaced by itself, such as a text of several lines.
    """
    expected = parse(text, "params.yaml")
    for keys, value in values.items():
        text = _set(text, keys, value)
        _parent(expected, keys)[keys[-1]] = value
        if _loaded(text) != expected:
            raise ParamsError(
                f"params.yaml: {'.'.join(keys)}: cannot be written there; write {keys[-1]}: {value} yourself"
            )
    return text


def _loaded(text: str) -> Any:
    try:
        return parse(text, "params.yaml")
    except ParamsError:
        return None


def _parent(tree: Any, keys: Path_) -> Any:
    for key in keys[:-1]:
        tree = tree[int(key) if isinstance(tree, list) else key]
    return tree


def _set(text: str, keys: Path_, value: str) -> str:
    mapping = YAML().compose(text)
    for key in keys[:-1]:
        mapping = mapping.value[int(key)] if isinstance(mapping, SequenceNode) else _item(mapping, key)[1]
    written = value if _loaded(value) == value else f'"{value}"'
    if keys[-1] not in [key.value for key, _ in mapping.value]:
        return _insert(text, mapping, f"{keys[-1]}: {written}")
    name, old = _item(mapping, keys[-1])
    start, end = old.start_mark.index, old.end_mark.index
    if start == end:  # nothing is written, which is null
        start = end = text.index(":", name.end_mark.index) + 1
        written = f" {written}"
    return f"{text[:start]}{written}{text[end:]}"


def _item(mapping: MappingNode, name: str) -> tuple[Node, Node]:
    return next((key, value) for key, value in mapping.value if key.value == name)


def _insert(text: str, mapping: MappingNode, item: str) -> str:
    """`text` with `item` after the first item of `mapping`, whose value is on the line of its key."""
    key, value = mapping.value[0]
    if mapping.flow_style:
        at = value.end_mark.index
        return f"{text[:at]}, {item}{text[at:]}"
    line_end = text.find("\n", value.end_mark.index)
    newline = "\r\n" if text[:line_end].endswith("\r") else "\n"
    indent = " " * key.start_mark.column
    if line_end < 0:
        return f"{text}\n{indent}{item}\n"
    return f"{text[: line_end + 1]}{indent}{item}{newline}{text[line_end + 1 :]}"
