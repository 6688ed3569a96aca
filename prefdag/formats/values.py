"""Single values: text, numbers, labels, and lists or objects that are stored as text.

A value of the wrong kind raises `Fault` with its column, what is wrong, and what to do.
"""

import ast
import io
import json
import math
import tokenize
from collections import Counter
from typing import Any

from prefdag.formats.faults import EXCERPT, REPEATED, Fault, kind

LABELS = {
    **dict.fromkeys(("true", "1", "1.0", "yes", "good", "desirable", "positive", "thumbs up", "chosen"), True),
    **dict.fromkeys(("false", "0", "0.0", "no", "bad", "undesirable", "negative", "thumbs down", "rejected"), False),
}


def needs_object(value: Any, column: str | None) -> dict[str, Any]:
    """`value`, if it is an object."""
    if not isinstance(value, dict):
        raise Fault(column, f"{kind(value)} where an object is needed")
    return value


def needs_text(value: Any, column: str | None) -> str:
    """`value`, if it is text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise Fault(column, f"{kind(value)} where text is needed")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # Bytes that are not UTF-8 also arrive here as surrogates; see `files.read_text`.
        where = f"character {error.start + 1}"
        raise Fault(column, f"bytes that are not UTF-8, or a lone surrogate, at {where}; save it as UTF-8") from None
    return value


def needs_number(value: Any, column: str) -> float:
    """`value` as a finite number. Text is converted, since CSV has nothing else."""
    if value is REPEATED or isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Fault(column, f"{kind(value)} where a number is needed; write one or remove the row")
    number = finite(value)
    if number is None:
        raise Fault(column, "not a finite number; write one or remove the row")
    return number


def finite(value: Any) -> float | None:
    """`value` as a finite number, or None if it is something else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and not isinstance(value, bool) else None


def needs_label(value: Any, column: str) -> bool:
    """`value` as true or false. It may be 1 or 0, also as text, as in CSV, or one of `LABELS`."""
    number = LABELS.get(value.strip().lower().replace("_", " "), value) if isinstance(value, str) else value
    if not isinstance(number, bool | int | float) or number not in (0, 1):
        given = f"{value[:EXCERPT]!r}" if isinstance(value, str) else kind(value)
        raise Fault(column, f"{given} where true or false is needed; write true for a desirable completion")
    return bool(number)


def holds(value: Any) -> bool:
    """Whether a value has any content. Null, NaN, an empty text, list or object have none: nothing is lost without them."""
    return not (value is None or value == "" or value == [] or value == {} or value != value)


def compact(value: Any, column: str) -> str:
    """`value` as JSON on one line."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        raise Fault(column, "has values that JSON does not have, or a repeated key; fix or remove them") from None
    return needs_text(text, column)


def _mark_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. A repeated key gets the value `REPEATED`, since it is unclear which of its values is meant."""
    row = dict(pairs)
    if len(row) < len(pairs):
        row |= {key: REPEATED for key, times in Counter(key for key, _ in pairs).items() if times > 1}
    return row


JSON = json.JSONDecoder(object_pairs_hook=_mark_repeated)


def decoded(text: str) -> Any:
    """The value of a text that is JSON, or a Python literal as pandas writes it into CSV. Raises `ValueError`."""
    try:
        return JSON.decode(text)
    except (ValueError, RecursionError):
        pass
    # numpy writes no commas between objects. Inside a literal's strings a line break is "\n", so this changes no text.
    text = text.strip().replace("}\n {", "},\n {")
    try:
        _refuse_joined_strings(text)
        return ast.literal_eval(text)
    except (SyntaxError, TypeError, MemoryError, RecursionError, tokenize.TokenError) as error:
        raise ValueError(str(error)) from None


def _refuse_joined_strings(text: str) -> None:
    """Python joins 'a' 'b' to 'ab'. numpy writes lists of texts without commas, and they would become one text."""
    before = None
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == before == tokenize.STRING:
            raise ValueError("texts without a comma between them")
        before = before if token.type in (tokenize.NL, tokenize.NEWLINE) else token.type
