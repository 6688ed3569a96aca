"""The table of answers to held-out prompts: which prompts, and what a model in this process answers, greedy and sampled."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import read_json, read_table, write_json
from prefdag.text.generation.answers import DECODINGS, MODELS, rows
from prefdag.text.generation.decoding import continuations
from prefdag.text.scoring.rows import pair_rows

if TYPE_CHECKING:
    from torch import nn

    from prefdag.config.answer_text import AnswerText
    from prefdag.text.scoring.formatted import FormattedPairs
    from prefdag.tokenizer.tokenizer import ChatTokenizer

TABLE, KEY = "answers.parquet", "key.json"  # of the folder that ref_answers writes


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


def write_answers(folder: Path, table: pd.DataFrame, config: "AnswerText") -> None:
    """Write answers for `read_answers`."""
    table.to_parquet(folder / TABLE, index=False)
    write_json(folder / KEY, _decoding(config))


def read_answers(folder: Path, prompts: pd.DataFrame, config: "AnswerText") -> pd.DataFrame:
    """The answers of `write_answers`. Raises `DataError` if they are to other prompts, or were decoded with other settings."""
    for name, value in _decoding(config).items():
        if (theirs := read_json(folder / KEY).get(name)) != value:
            raise DataError(f"{folder / KEY}: {name} is {theirs}, answer_text.{name} is {value}; run ref_answers again")
    table = read_table(folder / TABLE).to_pandas()
    expected = [*zip(prompts["id"], map(list, prompts["prompt_ids"]), strict=True)]
    for _, part in table.groupby(["decoding", "model"]):
        if [*zip(part["id"], map(list, part["prompt_ids"]), strict=True)] != expected:
            raise DataError(
                f"{folder / TABLE}: answers to other prompts than those of data/pairs; run ref_answers again"
            )
    return table


def _decoding(config: "AnswerText") -> dict[str, Any]:
    """What answers depend on besides the model and the prompts."""
    return {name: getattr(config, name) for name in ("max_new_tokens", "temperature", "top_p", "seed")}
