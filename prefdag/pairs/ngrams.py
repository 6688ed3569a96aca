"""Words and runs of words (n-grams), by which texts are compared."""

import re

import numpy as np
import numpy.typing as npt

# Each Chinese or Japanese character is a word, since these languages do not use spaces. (Korean does.)
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")


def normalised(text: str) -> str:
    """`text` without letter case, and with white space folded."""
    return " ".join(text.casefold().split())


def words(text: str) -> list[str]:
    """The words of a text, without letter case and punctuation. If it has no letters or digits, its other characters."""
    folded = text.casefold()
    return WORD.findall(folded) or folded.split()


# A run's hash is the sum of its words' numbers times these weights, modulo 2^64.
LONGEST = 13  # words of a run
WEIGHTS = np.random.default_rng(0).integers(1, 2**63, LONGEST, dtype=np.uint64) | np.uint64(1)


def run_hashes(numbers: npt.NDArray[np.uint64], length: int, step: int = 1) -> npt.NDArray[np.uint64]:
    """The hash of every `step`-th run of `length` words, which are given as numbers, (W,). There is none in a shorter text."""
    if len(numbers) < length:
        return np.zeros(0, np.uint64)
    n = len(numbers) - length + 1
    total = np.zeros(len(range(0, n, step)), np.uint64)
    for place, weight in enumerate(WEIGHTS[:length]):
        total += numbers[place : place + n : step] * weight
    return total
