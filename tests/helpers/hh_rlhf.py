"""Rows in the format of hh-rlhf: made-up ones, and the published ones if this machine has them."""

import json
import random

import pytest
from paths import REAL_DATA

PUBLISHED = REAL_DATA / "hh-rlhf" / "harmless-base.jsonl.gz"  # the first 2,000 rows

# Runs a test on made-up rows (`file` is None) and on the published ones.
hh_rlhf_files = pytest.mark.parametrize(
    "file",
    [
        pytest.param(None, id="made up"),
        pytest.param(
            PUBLISHED,
            id="published",
            marks=pytest.mark.skipif(not PUBLISHED.exists(), reason="the published rows are not on this machine"),
        ),
    ],
)


def transcripts(n: int) -> str:
    r"""`n` rows as JSON lines: dialogues of one to four questions with the peculiarities of the published rows.

    These are speakers typed into the text ("Human:" after spaces), paragraphs, characters that JSON escapes, and responses
    with leading spaces. Rows 30, 31 and the last one are invalid: their prompts differ, or they end with the human's turn.
    """
    draw = random.Random(0)

    def text() -> str:
        words = [f"{draw.choice('bdgklmnprst')}{draw.choice('aeiou')}{draw.randrange(100)}" for _ in range(20)]
        return " ".join(
            [*words, draw.choice(["?", "’s “so”\u2028", 'a "b"\n\n1. c', "  Human: d", " Assistant: é 😀"])]
        )

    lines = []
    for row in range(n):
        turns = [f"\n\nHuman: {text()}\n\nAssistant: {text()}" for _ in range(draw.randint(0, 3))]
        prompt = "".join(turns) + f"\n\nHuman: {text()}"
        chosen, rejected = (f"{prompt}\n\nAssistant: {draw.choice(['', ' '])}{text()}" for _ in range(2))
        if row == 30:
            rejected = chosen.replace("Human: ", "Human: no ", 1)
        if row in (31, n - 1):
            chosen += f"\n\nHuman: {text()}"
        lines.append(json.dumps({"chosen": chosen, "rejected": rejected}, ensure_ascii=False) + "\n")
    return "".join(lines)
