"""Answers of a served policy to the prompts of a round."""

from typing import TYPE_CHECKING

from prefdag.rounds.sampling import answer_rows, repeated, seeds_of
from prefdag.text.generation import endpoint

if TYPE_CHECKING:
    import pandas as pd

    from prefdag.rounds.plan import SamplePlan
    from prefdag.text.generation.endpoint import ServedModel
    from prefdag.tokenizer.tokenizer import ChatTokenizer


def sampled_by_server(
    model: "ServedModel",
    prompts: "pd.DataFrame",
    plan: "SamplePlan",
    tokenizer: "ChatTokenizer",
    *,
    parallel: int,
    number: int,
    name: str,
) -> "pd.DataFrame":
    """As `sampling.sampled`, from a served model, with the `reply` to each request, its `seed` and `reencoded`.

    Raises:
        SourceError: as `endpoint.completions`.
    """
    table = repeated(prompts, plan.samples)
    seeds = [endpoint.seed_of(seed) for seed in seeds_of(table, plan.seed, number)]
    found = endpoint.completions(
        model,
        tokenizer,
        table["prompt_ids"].tolist(),
        max_new_tokens=plan.max_new_tokens,
        parallel=parallel,
        name=name,
        seeds=seeds,
        sampling=(plan.temperature, plan.top_p),
    )
    rows = answer_rows(table, [each.ids for each in found], tokenizer)
    return rows.assign(seed=seeds, reply=[each.reply for each in found], reencoded=[each.reencoded for each in found])
