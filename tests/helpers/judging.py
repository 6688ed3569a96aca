"""Contests for tests of judges."""

from pathlib import Path

import pandas as pd

from prefdag.pairs.turns import Asked
from prefdag.text.evaluation import judge
from prefdag.text.generation import answers
from stages import judge_text

EOS = 0


def contests_of(texts: list[tuple[str, str]], decoding: str = "greedy") -> pd.DataFrame:
    """Contests of (reference, policy) texts for prompts p0, p1, ...; a text has one id (from 1) per character, and the EOS."""
    prompts = pd.DataFrame({"id": [f"p{i}" for i in range(len(texts))], "prompt_ids": [[5, 6, 7]] * len(texts)})

    def ids(text: str) -> list[int]:
        return [*(1 + ord(c) % 60 for c in text), EOS]

    tables = [
        answers.rows(prompts.assign(decoding=decoding), side, list(map(ids, side)), (EOS,))
        for side in map(list, zip(*texts, strict=True))
    ]
    asked = {key: Asked([{"role": "user", "content": f"Say {key}"}], None) for key in prompts["id"]}
    return judge.contests(*tables, asked)


def write_two_contests(**columns: object) -> None:
    """What the stage reads, in the current directory: greedy answers to the prompts p0 and p1. `columns` are of the pairs."""
    keys = {"id": ["p0", "p1"], "decoding": "greedy", "prompt": "Hi"}
    sides = {"reference": ["a stone", "b"], "policy": ["a rose", "c"]}
    table = pd.concat(
        answers.rows(pd.DataFrame(keys).assign(model=model, prompt_ids=[[5], [6]]), texts, [[7, 0], [8]], (0,))
        for model, texts in sides.items()
    )
    Path("reports/text").mkdir(parents=True)
    Path("data/validated").mkdir(parents=True)
    table.to_parquet(judge_text.ANSWERS)
    prompts = [[{"role": "user", "content": "Name one"}]] * 2
    pd.DataFrame({"id": ["p1", "p0"], "prompt": prompts, **columns}).to_parquet(judge_text.MESSAGES)
