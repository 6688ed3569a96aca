"""Texts compared by their words."""

import re

# Chinese and Japanese characters, which no space parts, are words of their own. (Korean has spaces.)
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")


def normalised(text: str) -> str:
    """What two spellings of one text have in common: no letter case, and white space folded."""
    return " ".join(text.casefold().split())


def words(text: str) -> list[str]:
    """The words of a text, without letter case and punctuation; of one without any letters or digits, its signs."""
    folded = text.casefold()
    return WORD.findall(folded) or folded.split()


def runs(text: str, length: int) -> set[str]:
    """The runs of `length` words in a text; all of a shorter one is its only run."""
    found = words(text)
    return {" ".join(found[i : i + length]) for i in range(max(1, len(found) - length + 1))}
