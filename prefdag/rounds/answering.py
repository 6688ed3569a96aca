"""The answers of the policy before a round, sampled in this process or by a server."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from prefdag.config.round import ServedPolicy
from prefdag.distributed.process import process
from prefdag.lifecycle.launcher import rank
from prefdag.rounds.parts import read_parts, sample_parts
from prefdag.rounds.places import policies_before
from prefdag.rounds.sampling import answer_rows, repeated, sampled, seeds_of
from prefdag.text.generation import endpoint
from prefdag.text.sharded import load_both

if TYPE_CHECKING:
    from prefdag.rounds.plan import SamplePlan
    from prefdag.text.generation.endpoint import ServedModel
    from prefdag.text.scoring.formatted import FormattedPairs
    from prefdag.tokenizer.tokenizer import ChatTokenizer


def answered(
    plan: "SamplePlan",
    prompts: pd.DataFrame,
    train: "FormattedPairs",
    tokenizer: "ChatTokenizer",
    reference: Path,
    parts: Path,
    number: int,
) -> tuple[pd.DataFrame, dict[str, Any]] | None:
    """The answers of a round, as `sampled`, and what is to be said of a server. None on all processes but the first.

    Args:
        prompts: `id` and `prompt_ids`.
        train: pairs by whose log-probabilities a served policy is recognised.
        parts: a folder that keeps answers of this process for a stage that goes on; a server's replies are kept elsewhere.

    Raises:
        SourceError: the server does not have the policy before the round, or fails.
    """
    *earlier, before = policies_before(number)
    if isinstance(plan.sampler, ServedPolicy):
        process()  # it starts when every process calls this
        if rank() > 0:  # the first one asks for several answers at once by itself
            return None
        served, described = endpoint.connect_policy(plan.sampler, "rounds.sampler", reference, before, earlier, train)
        answers = _by_server(served, prompts, plan, tokenizer, plan.sampler.parallel, number)
        return answers, described | {"reencoded": int(answers["reencoded"].sum())}
    policy = load_both(reference, before, shard=plan.shard, packed=False).policy

    def sample(some: pd.DataFrame, part: str) -> pd.DataFrame:
        name = f"round {number}, {part}"
        return sampled(policy, some, plan, tokenizer, samples=plan.samples, number=number, name=name)

    files = sample_parts(parts, prompts, plan.batch_size, sample)
    return (read_parts(files, prompts), {}) if rank() == 0 else None


def _by_server(
    model: "ServedModel",
    prompts: pd.DataFrame,
    plan: "SamplePlan",
    tokenizer: "ChatTokenizer",
    parallel: int,
    number: int,
) -> pd.DataFrame:
    """As `sampled`, from a served model, with the `reply` to each request, its `seed` and `reencoded`."""
    table = repeated(prompts, plan.samples)
    seeds = [endpoint.seed_of(seed) for seed in seeds_of(table, plan.seed, number)]
    found = endpoint.completions(
        model,
        tokenizer,
        table["prompt_ids"].tolist(),
        max_new_tokens=plan.max_new_tokens,
        parallel=parallel,
        name=f"round {number}",
        seeds=seeds,
        sampling=(plan.temperature, plan.top_p),
    )
    rows = answer_rows(table, [each.ids for each in found], tokenizer)
    return rows.assign(seed=seeds, reply=[each.reply for each in found], reencoded=[each.reencoded for each in found])
