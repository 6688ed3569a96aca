"""Words and runs of words (n-grams), by which texts are compared."""

import re

# Each Chinese or Japanese character is a word, since these languages do not use spaces. (Korean does.)
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")


def normalised(text: str) -> str:
    """`text` without letter case, and with white space folded."""
    return " ".join(text.casefold().split())


def words(text: str) -> list[str]:
    """The words of a text, without letter case and punctuation. If it has no letters or digits, its other characters."""
    folded = text.casefold()
    return WORD.findall(folded) or folded.split()


def runs(text: str, length: int) -> set[str]:
    """The runs of `length` words in a text. A shorter text is one run."""
    own = words(text)
    return {" ".join(own[i : i + length]) for i in range(max(1, len(own) - length + 1))}
