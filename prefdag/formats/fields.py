"""Fields of a record, which note what is read, so that nothing is dropped in silence.

    row = Row({"prompt": "p", "chosen": [{"role": "assistant", "content": "c", "tool_calls": [...]}], "id": 7})
    row["prompt"].text()                  # "p"
    row["chosen"].items()[0]["content"].text()
    [field.path for field in row.unread()]   # ["chosen[0].role", "chosen[0].tool_calls", "id"]

A parser reads a record only through `Row` and `Field`. What it left unread is an error if its name is that of known content
(`MEANINGFUL`), and is listed otherwise.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

from prefdag.formats.faults import Fault, kind
from prefdag.formats.values import decoded, holds, needs_label, needs_number, needs_object, needs_text

# Names of content that changes what a row means, without letter case and punctuation. A row is invalid if one is not read.
MEANINGFUL = {
    *("system", "systemprompt", "systemmessage", "history", "context", "document", "documents", "passage", "input"),
    *("tools", "toolcalls", "toolcallid", "functions", "functioncall", "functioncalls"),
    *("reasoning", "reasoningcontent", "thinking"),
    *("image", "images", "imageurl", "imageurls", "video", "videos", "audio", "audios"),
}
EMPTY = {"", "[]", "{}", "null", "None", "nan"}  # nothing, as text: CSV has no other way to write it
PATHS = 300  # paths of a record that are compared with a misspelt one


class Field:
    """A value of a record with its path, and which parts of it were read."""

    __slots__ = ("_children", "_taken", "key", "path", "value")

    def __init__(self, value: Any, path: str = "", key: str = "") -> None:
        self.value = value
        self.path = path
        self.key = key  # the last name of the path, without indices
        self._children: dict[str | int, Field] = {}
        self._taken = False

    def __contains__(self, key: str) -> bool:
        return isinstance(self.value, dict) and key in self.value

    def __getitem__(self, key: str) -> "Field":
        """The field `key` of an object, which may be stored as text. Raises `Fault` if it is missing."""
        if isinstance(self.value, str) and self.value.lstrip().startswith("{"):
            self.structured()
        if key not in needs_object(self.value, self.path or None):
            raise Fault(self._below(key), "missing; add it or remove the row")
        return self._child(key)

    def has(self, key: str) -> bool:
        """Whether there is a field `key` with any content."""
        return key in self and holds(self[key].value)

    def one_of(self, *keys: str) -> "Field | None":
        """The field with any of these names; None without one. Raises `Fault` if several have different content."""
        there = [self[key] for key in keys if self.has(key)] or [self[key] for key in keys if key in self][:1]
        for other in there[1:]:
            if other.value != there[0].value:
                raise Fault(other.path, f"the row has {there[0].path} too; keep one of them")
            other.take()
        return there[0] if there else None

    def items(self, what: str = "values") -> list["Field"]:
        """The fields of a list, which may be stored as text."""
        if isinstance(self.value, str) and self.value.lstrip().startswith("["):
            self.structured()
        if not isinstance(self.value, list):
            raise Fault(self.path, f"{kind(self.value)} where a list of {what} is needed")
        return [self._child(i) for i in range(len(self.value))]

    def structured(self) -> "Field":
        """This field, after decoding it if it is a list or an object stored as text."""
        if isinstance(self.value, str):
            try:
                self.value = decoded(self.value)
            except ValueError:
                raise Fault(self.path, "text that is neither JSON nor a Python list; fix or remove it") from None
        return self

    @property
    def is_read(self) -> bool:
        """Whether any of it was read."""
        return self._taken or any(child.is_read for child in self._children.values())

    def take(self) -> Any:
        """The value, with all that is in it, which now counts as read."""
        self._taken = True
        return self.value

    def text(self) -> str:
        """The value, if it is text."""
        return needs_text(self.take(), self.path)

    def number(self) -> float:
        """The value as a finite number."""
        return needs_number(self.take(), self.path)

    def label(self) -> bool:
        """The value as true or false."""
        return needs_label(self.take(), self.path)

    def unread(self) -> Iterator["Field"]:
        """What was not read and has any content. If nothing of an object or a list was read, it is one field."""
        if self._taken or not holds(self.value):
            return
        if not self._children or not isinstance(self.value, dict | list):
            yield self
            return
        for key in self.value if isinstance(self.value, dict) else range(len(self.value)):
            yield from self._child(key).unread()

    def at(self, path: str) -> "Field | None":
        """The field at a dotted path such as answers.0.text, or None. A name may have dots itself."""
        if isinstance(self.value, str) and self.value.lstrip()[:1] in ("[", "{"):
            with suppress(Fault):
                self.structured()
        if isinstance(self.value, dict) and path in self.value:
            return self._child(path)
        head, _, rest = path.partition(".")
        if isinstance(self.value, list) and re.fullmatch("-?[0-9]+", head):
            number = int(head) + (len(self.value) if head.startswith("-") else 0)
            below = self._child(number) if 0 <= number < len(self.value) else None
        else:
            below = self._child(head) if isinstance(self.value, dict) and head in self.value else None
        return below.at(rest) if below is not None and rest else below

    def _child(self, key: str | int) -> "Field":
        if key not in self._children:
            path = f"{self.path}[{key}]" if isinstance(key, int) else self._below(key)
            self._children[key] = Field(self.value[key], path, self.key if isinstance(key, int) else key)
        return self._children[key]

    def _below(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key


class Row(Field):
    """A record. `columns` names the paths of fields that have other names in the file; null leaves a column out.

    `others` are the records of the next rows, if several rows are one record. What they repeat counts as read.
    """

    __slots__ = ("columns", "others")

    def __init__(
        self, record: Any, columns: Mapping[str, str | None] | None = None, others: Iterable["Row"] = ()
    ) -> None:
        super().__init__(needs_object(record, None))
        self.columns = columns or {}
        self.others = tuple(others)
        for other in self.others:
            for key in other.value:
                if key in self.value and other.value[key] == self.value[key]:
                    other._child(key).take()
        for name, path in self.columns.items():
            if path is None and (left_out := self.at(name)) is not None:
                left_out.take()

    def __contains__(self, key: str) -> bool:
        return self._mapped(key) is not None if key in self.columns else super().__contains__(key)

    def __getitem__(self, key: str) -> Field:
        mapped = self._mapped(key) if key in self.columns else None
        return super().__getitem__(key) if mapped is None else mapped

    def _mapped(self, key: str) -> Field | None:
        path = self.columns[key]
        return None if path is None else self.at(path)

    def unread(self) -> Iterator[Field]:
        """See `Field.unread`; column by column, also of the other rows."""
        for row in (self, *self.others):
            for key in row.value:
                yield from row._child(key).unread()

    def names(self) -> list[str]:
        """The names that a parser can read."""
        return list(dict.fromkeys([*(name for name in self.columns if name in self), *self.value]))


def ignored(row: Field, reader: str) -> list[str]:
    """The names of what `reader` left unread, without indices. Raises `Fault` for content that changes the row's meaning."""
    names = set()
    for field in row.unread():
        if isinstance(field.value, str) and field.value.strip() in EMPTY:
            continue
        if meaningful(field.key):
            remedy = "map it with validate_pairs.columns, or remove it"
            if "[" not in field.path:
                remedy += f" ({{{field.path}: null}} leaves it out)"
            raise Fault(field.path, f"{reader} does not read it, and training without it would be wrong; {remedy}")
        names.add(re.sub(r"\[\d+\]", "[]", field.path))
    return sorted(names)


def meaningful(name: str) -> bool:
    """Whether a name is that of content that changes what a row means."""
    return re.sub("[^a-z]", "", name.lower()) in MEANINGFUL


def closest_path(record: Any, path: str) -> str | None:
    """The dotted path in `record` that is most like `path`."""
    guesses = difflib.get_close_matches(path, islice(_paths(record, ""), PATHS), n=1, cutoff=0.5)
    return guesses[0] if guesses else None


def _paths(value: Any, before: str) -> Iterator[str]:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield f"{before}{key}"
        yield from _paths(value[key], f"{before}{key}.")
