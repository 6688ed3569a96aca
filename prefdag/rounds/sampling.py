"""The prompts of a round, and the policy's answers to them."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from prefdag.lifecycle.errors import DataError
from prefdag.text.generation import answers
from prefdag.text.generation.decoding import continuations
from prefdag.text.scoring.rows import pair_rows

if TYPE_CHECKING:
    from torch import nn

    from prefdag.rounds.plan import EvaluatePlan, SamplePlan
    from prefdag.text.scoring.formatted import FormattedPairs
    from prefdag.tokenizer.tokenizer import ChatTokenizer


def prompts_of(pairs: "FormattedPairs") -> pd.DataFrame:
    """The different prompts of a split, `id` (of the first pair that has it) and `prompt_ids`, in their order."""
    ids = [list(map(int, pair.prompt)) for pair in pair_rows(pairs)]
    table = pd.DataFrame({"id": pairs.ids, "prompt_ids": ids})
    return table[~table["prompt_ids"].map(tuple).duplicated()].reset_index(drop=True)


def picked(prompts: pd.DataFrame, plan: "SamplePlan", number: int) -> pd.DataFrame:
    """The prompts of a round: each round takes the next ones of one random order.

    Raises:
        DataError: there are too few.
    """
    last = plan.skip + plan.prompts
    if last > len(prompts):
        where = "data/pairs/train.parquet" if plan.source is None else "params.yaml: rounds.prompts.source"
        raise DataError(
            f"{where}: {len(prompts)} prompts, but the rounds up to round {number} take {last}; "
            "lower rounds.prompts or rounds.count"
        )
    order = np.random.default_rng(plan.order).permutation(len(prompts))
    return prompts.iloc[np.sort(order[plan.skip : last])].reset_index(drop=True)


def sampled(
    model: "nn.Module",
    prompts: pd.DataFrame,
    plan: "SamplePlan | EvaluatePlan",
    tokenizer: "ChatTokenizer",
    *,
    samples: int,
    number: int,
    name: str,
) -> pd.DataFrame:
    """`samples` answers of a model to each prompt, one row each, the answers to a prompt together.

    The columns are those of `answers.rows`, and `sample`, the answer's number from 0 on. An answer depends on its prompt, its
    number and the round, not on the batch.

    Args:
        prompts: `id` and `prompt_ids`.
    """
    table = repeated(prompts, samples)
    seeds = seeds_of(table, plan.seed, number)
    by_prompt = continuations(
        model,
        prompts["prompt_ids"].tolist(),
        [seeds[start : start + samples] for start in range(0, len(seeds), samples)],
        sampling=(plan.temperature, plan.top_p),
        max_new_tokens=plan.max_new_tokens,
        stop_ids=tokenizer.stop_ids,
        batch_size=max(1, plan.batch_size // samples),
        name=name,
    )
    generated = [ids for each in by_prompt for ids in each]
    return answer_rows(table, generated, tokenizer)


def repeated(prompts: pd.DataFrame, samples: int) -> pd.DataFrame:
    """Each prompt `samples` times, with `sample`, from 0 on."""
    table = prompts.loc[prompts.index.repeat(samples)].reset_index(drop=True)
    return table.assign(sample=list(range(samples)) * len(prompts))


def seeds_of(table: pd.DataFrame, seed: int, number: int) -> list[list[int]]:
    return [[seed, number, sample, *key.encode()] for key, sample in zip(table["id"], table["sample"], strict=True)]


def answer_rows(table: pd.DataFrame, generated: list[list[int]], tokenizer: "ChatTokenizer") -> pd.DataFrame:
    texts = [tokenizer.decode(ids[:-1] if ids[-1] in tokenizer.stop_ids else ids) for ids in generated]
    return answers.rows(table, texts, generated, tokenizer.stop_ids)
