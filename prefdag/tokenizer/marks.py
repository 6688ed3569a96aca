"""Marks around the control tokens that somebody typed, which tell them from those that a chat template writes."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

# Unicode noncharacters, which are reserved for a program's internal use. Texts should not have them; if so, they are removed.
OPEN, CLOSE = "\ufdd0", "\ufdd1"
NO_MARKS = str.maketrans("", "", OPEN + CLOSE)
# Splitting by it gives text, control token, text, ...; or None for a mark whose partner the template removed.
MARKED = re.compile(f"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}|[{OPEN}{CLOSE}]")


def marked(value: Any, controls: re.Pattern[str]) -> Any:
    """A value with marks around the control tokens in its texts, and without marks of its own."""
    match value:
        case str():
            plain = value.translate(NO_MARKS) if OPEN in value or CLOSE in value else value
            return controls.sub(f"{OPEN}\\g<0>{CLOSE}", plain) if controls.search(plain) else plain
        case Mapping():
            return {marked(key, controls): marked(each, controls) for key, each in value.items()}
        case list() | tuple():
            return [marked(each, controls) for each in value]
    return value


def any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches any of these texts, the longest first; nothing if there are none."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=lambda token: (-len(token), token)))) or r"(?!)")
