"""Answers of reference, policy and control to the same prompts, generated in this process or by a server."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from prefdag.config.answer_text import EndpointSampler
from prefdag.distributed.process import process
from prefdag.lifecycle.launcher import rank
from prefdag.text.generation import endpoint
from prefdag.text.generation.answers import DECODINGS, rows
from prefdag.text.generation.decoding import continuations
from prefdag.text.sharded import load_both

if TYPE_CHECKING:
    from torch import nn

    from prefdag.config.answer_text import AnswerText
    from prefdag.text.scoring.formatted import FormattedPairs
    from prefdag.tokenizer.tokenizer import ChatTokenizer

log = logging.getLogger(__name__)

# By decoding and model: columns of the table of answers, `ids` among them.
Columns = dict[tuple[str, str], dict[str, list[Any]]]


def answered(
    config: "AnswerText",
    prompts: pd.DataFrame,
    folders: Mapping[str, Path],
    base: Path,
    test: "FormattedPairs",
    tokenizer: "ChatTokenizer",
) -> tuple[pd.DataFrame, dict[str, Any]] | None:
    """The table of answers, as `rows`, and what is to be said of a server. None on all processes but the first if one answers.

    All models sample with the same noise, so an unchanged policy gives the same answers, and noise cancels out of comparisons.

    Args:
        prompts: `id`, `prompt` (text) and `prompt_ids`.
        folders: of the models that answer: "reference", "policy" and maybe "control".
        base: the model that the reference started from, which a server might serve in its place.
        test: pairs on which the models of a server and ours are compared.

    Raises:
        SourceError: the server does not serve these models, or fails.
    """
    ids = prompts["prompt_ids"].tolist()
    seeds = [[config.seed, *key.encode()] for key in prompts["id"]]
    described: dict[str, Any] = {}
    if isinstance(config.sampler, EndpointSampler):
        process()  # it starts when every process calls this
        if rank() > 0:  # the first one asks for several answers at once by itself
            return None
        if "control" in folders:
            log.warning("%s: the server does not serve it, so it answers nothing", folders["control"])
        served, described = endpoint.connect(config.sampler, folders["reference"], folders["policy"], base, test)
        columns = _by_server(served, config, config.sampler.parallel, ids, seeds, tokenizer)
    else:
        columns = _here(folders, config, ids, seeds, tokenizer.stop_ids)
    parts = []
    for (decoding, model), found in columns.items():
        generated = found.pop("ids")
        texts = [tokenizer.decode(each[:-1] if each[-1] in tokenizer.stop_ids else each) for each in generated]
        labelled = prompts.assign(decoding=decoding, model=model)
        parts.append(rows(labelled, texts, generated, tokenizer.stop_ids).assign(**found))
    table = pd.concat(parts, ignore_index=True)
    if described:
        described = {"sampler": described | {"reencoded": int(table["reencoded"].sum())}}
    return table, described


def _here(
    folders: Mapping[str, Path],
    config: "AnswerText",
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
) -> Columns:
    def written(model: "nn.Module", name: str) -> list[list[list[int]]]:
        # The greedy and the sampled answer to a prompt are written together.
        return continuations(
            model,
            prompts,
            [[None, seed] for seed in seeds],
            sampling=(config.temperature, config.top_p),
            max_new_tokens=config.max_new_tokens,
            stop_ids=stop_ids,
            batch_size=config.batch_size,
            name=name,
        )

    models = load_both(folders["reference"], folders["policy"], shard=config.shard, packed=False)
    both = {name: written(model, name) for name, model in models._asdict().items()}
    if "control" in folders:
        del models  # before the next two
        control = load_both(folders["reference"], folders["control"], shard=config.shard, packed=False).policy
        both["control"] = written(control, "control")
    return {
        (decoding, name): {"ids": [answers[place] for answers in each]}
        for place, decoding in enumerate(DECODINGS)
        for name, each in both.items()
    }


def _by_server(
    served: Mapping[str, endpoint.ServedModel],
    config: "AnswerText",
    parallel: int,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[Sequence[int]],
    tokenizer: "ChatTokenizer",
) -> Columns:
    sent = [endpoint.seed_of(seed) for seed in seeds]
    columns: Columns = {}
    for decoding, sampling in zip(DECODINGS, (None, (config.temperature, config.top_p)), strict=True):
        for name, model in served.items():
            found = endpoint.completions(
                model,
                tokenizer,
                prompts,
                max_new_tokens=config.max_new_tokens,
                parallel=parallel,
                name=f"{decoding}, {name}",
                sampling=sampling,
                seeds=sent,
            )
            by_field = {field: [getattr(each, field) for each in found] for field in endpoint.Completion._fields}
            columns[decoding, name] = {"seed": sent, **by_field}
    return columns
