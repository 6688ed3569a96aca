"""The table of answers of reference and policy to held-out prompts, from a server."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from prefdag.text.generation import endpoint
from prefdag.text.generation.answering import joined, labelled, seeds_of
from prefdag.text.generation.answers import DECODINGS

if TYPE_CHECKING:
    from prefdag.config.answer_text import AnswerText, EndpointSampler
    from prefdag.text.scoring.formatted import FormattedPairs
    from prefdag.tokenizer.tokenizer import ChatTokenizer


def answered_by_server(
    sampler: "EndpointSampler",
    config: "AnswerText",
    prompts: pd.DataFrame,
    models: tuple[Path, Path, Path],
    test: "FormattedPairs",
    tokenizer: "ChatTokenizer",
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The answers, with the `reply` to each request, its `seed` and `reencoded`; and what is to be said of the server.

    Args:
        prompts: as `heldout_prompts` makes them.
        models: the reference, the policy, and the model that the reference started from, which might be served in its place.
        test: pairs on which the models of the server and ours are compared.

    Raises:
        SourceError: the server does not serve these models, or fails.
    """
    served, described = endpoint.connect(sampler, *models, test)
    seeds = [endpoint.seed_of(seed) for seed in seeds_of(prompts, config.seed)]
    parts = []
    for decoding, sampling in zip(DECODINGS, (None, (config.temperature, config.top_p)), strict=True):
        for name, model in served.items():
            found = endpoint.completions(
                model,
                tokenizer,
                prompts["prompt_ids"].tolist(),
                max_new_tokens=config.max_new_tokens,
                parallel=sampler.parallel,
                name=f"{decoding}, {name}",
                sampling=sampling,
                seeds=seeds,
            )
            rows = labelled(prompts, decoding, name, [each.ids for each in found], tokenizer)
            said: dict[str, Any] = {
                "reply": [each.reply for each in found],
                "reencoded": [each.reencoded for each in found],
            }
            parts.append(rows.assign(seed=seeds, **said))
    table = joined(parts)
    return table, {"sampler": described | {"reencoded": int(table["reencoded"].sum())}}
