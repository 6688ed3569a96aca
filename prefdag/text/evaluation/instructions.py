"""Instructions that a program can check, as in IFEval (arXiv:2311.07911): found in a prompt, and checked in an answer."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: number for number, word in enumerate(WORDS, start=1)}
NUMBER = rf"(\d+|{'|'.join(NUMBERS)})"
# A sentence ends with a mark, perhaps in quotes, before white space or the end.
SENTENCE_END = re.compile(r"[.!?]+[\"'”’)]*(?=\s|$)")


class Instruction(NamedTuple):
    """An instruction. `pattern` finds it in a prompt; `followed` takes an answer and the pattern's groups."""

    pattern: str
    followed: Callable[..., bool]


class Found(NamedTuple):
    """An instruction as a prompt states it, and whether an answer follows it."""

    text: str
    followed: bool


def sentences(text: str) -> int | None:
    """The number of sentences; None if the last one has no end."""
    ends = [match.end() for match in SENTENCE_END.finditer(text.strip())]
    return len(ends) if ends and ends[-1] == len(text.strip()) else None


def _words(text: str) -> int:
    return len(text.split())


def _number(text: str) -> int:
    return NUMBERS.get(text.lower()) or int(text)


def _in_quotes(text: str) -> bool:
    inner = text.strip()[1:-1]
    return len(text.strip()) > 1 and text.strip()[0] + text.strip()[-1] in ('""', "“”") and not set(inner) & set('"“”')


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


INSTRUCTIONS = (
    Instruction(rf"\bexactly {NUMBER} sentences?\b", lambda answer, n: sentences(answer) == _number(n)),
    Instruction(rf"\bat most {NUMBER} words?\b", lambda answer, n: 0 < _words(answer) <= _number(n)),
    Instruction(rf"\bat least {NUMBER} words?\b", lambda answer, n: _words(answer) >= _number(n)),
    Instruction(r"\bend (?:your answer )?with a question\b", lambda answer: answer.rstrip().endswith("?")),
    Instruction(r"\bin double quotes\b", _in_quotes),
    Instruction(r"\b(?:do not use any|use no) commas\b", lambda answer: bool(answer.strip()) and "," not in answer),
    Instruction(r"\buse the word [\"“](\w+)[\"”]", _has_word),
)


def found(prompt: str, answer: str) -> Iterator[Found]:
    """The instructions that a prompt states, in the order of `INSTRUCTIONS`, and whether an answer follows each."""
    for pattern, followed in INSTRUCTIONS:
        for match in re.finditer(pattern, prompt, re.IGNORECASE):
            yield Found(match[0], followed(answer, *match.groups()))
