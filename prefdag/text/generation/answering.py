"""The table of answers to held-out prompts: which prompts, and what a model in this process answers, greedy and sampled."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import read_table
from prefdag.text.generation.answers import DECODINGS, MODELS, rows
from prefdag.text.generation.decoding import continuations
from prefdag.text.scoring.rows import pair_rows

if TYPE_CHECKING:
    from torch import nn

    from prefdag.config.answer_text import AnswerText
    from prefdag.text.scoring.formatted import FormattedPairs
    from prefdag.tokenizer.tokenizer import ChatTokenizer


def heldout_prompts(test: "FormattedPairs", count: int | None, tokenizer: "ChatTokenizer") -> pd.DataFrame:
    """The first `count` prompts of the test split, or all: `id`, `prompt` and `prompt_ids`.

    Several pairs can share a prompt, which is answered once.
    """
    every = pd.DataFrame({"id": test.ids, "prompt_ids": [list(map(int, pair.prompt)) for pair in pair_rows(test)]})
    prompts = every[~every["prompt_ids"].map(tuple).duplicated()][:count]
    return prompts.assign(prompt=[tokenizer.decode(ids) for ids in prompts["prompt_ids"]])


def seeds_of(prompts: pd.DataFrame, seed: int) -> list[list[int]]:
    """The seeds of the sampled answers, by prompt.

    All models sample with the same noise, so an unchanged policy gives the same answers, and noise cancels out of comparisons.
    """
    return [[seed, *key.encode()] for key in prompts["id"]]


def answered(
    model: "nn.Module", name: str, prompts: pd.DataFrame, config: "AnswerText", tokenizer: "ChatTokenizer"
) -> pd.DataFrame:
    """The model's greedy and sampled answers, as `labelled`. Processes share the work, and all get the table."""
    # The greedy and the sampled answer to a prompt are written together.
    both = continuations(
        model,
        prompts["prompt_ids"].tolist(),
        [[None, seed] for seed in seeds_of(prompts, config.seed)],
        sampling=(config.temperature, config.top_p),
        max_new_tokens=config.max_new_tokens,
        stop_ids=tokenizer.stop_ids,
        batch_size=config.batch_size,
        name=name,
    )
    parts = [
        labelled(prompts, decoding, name, [answers[place] for answers in both], tokenizer)
        for place, decoding in enumerate(DECODINGS)
    ]
    return pd.concat(parts, ignore_index=True)


def labelled(
    prompts: pd.DataFrame, decoding: str, model: str, ids: Sequence[Sequence[int]], tokenizer: "ChatTokenizer"
) -> pd.DataFrame:
    """One row per answer: `answers.rows` with `decoding` and `model`."""
    texts = [tokenizer.decode(each[:-1] if each[-1] in tokenizer.stop_ids else each) for each in ids]
    return rows(prompts.assign(decoding=decoding, model=model), texts, ids, tokenizer.stop_ids)


def joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The answers of several models as one table, by decoding, model and prompt."""
    every = pd.concat(tables, ignore_index=True)
    order = [*zip(every["decoding"].map(DECODINGS.index), every["model"].map(MODELS.index), strict=True)]
    return every.iloc[sorted(range(len(every)), key=order.__getitem__)].reset_index(drop=True)


def read_answers(path: Path, prompts: pd.DataFrame) -> pd.DataFrame:
    """The answers that ref_answers wrote. Raises `DataError` if they are to other prompts than these."""
    table = read_table(path).to_pandas()
    for _, part in table.groupby(["decoding", "model"]):
        if part["id"].tolist() != prompts["id"].tolist() or any(
            list(mine) != list(theirs) for mine, theirs in zip(part["prompt_ids"], prompts["prompt_ids"], strict=True)
        ):
            raise DataError(f"{path}: answers to other prompts than those of data/pairs; run ref_answers again")
    return table
