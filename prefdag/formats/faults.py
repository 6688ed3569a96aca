"""What is wrong with a row, and how its values are named in messages."""

from typing import Any

EXCERPT = 120  # characters
REPEATED = object()  # the value of a key that occurs more than once in a JSON object


class Fault(Exception):  # noqa: N818 - a fault of the row, not of the program
    """Why a row cannot be read: the column (or the character, if a line is not JSON), and the reason with its remedy."""

    def __init__(self, column: str | None, reason: str) -> None:
        super().__init__(reason)
        self.column = column
        self.reason = reason


def kind(value: Any) -> str:
    """A value's type in the user's words."""
    if value is REPEATED:
        return "a repeated key"
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def shown(text: str) -> str:
    """The start of a text in quotes, on one line."""
    return ascii(text if len(text) <= EXCERPT // 2 else text[: EXCERPT // 2] + "...")
