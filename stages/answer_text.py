"""Generate the answers of reference, policy and control to held-out prompts, greedy and sampled, and their statistics."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdag.config.answer_text import AnswerText, EndpointSampler
from prefdag.config.format_pairs import FormatPairs
from prefdag.config.samplers import LocalSampler
from prefdag.lifecycle.launcher import rank
from prefdag.runtime.artifacts import write_json, writing
from prefdag.runtime.stage import distributed_stage

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

PAIRS = Path("data/pairs")
BASE = Path("models/base")
REFERENCE = Path("models/reference")
POLICY = Path("models/policy")
CONTROL = Path("models/control_text")
ANSWERS = Path("reports/text/answers.parquet")
STATISTICS = Path("reports/text/answers.json")


@distributed_stage
def main(format_pairs: FormatPairs, answer_text: AnswerText) -> None:
    import pandas as pd

    from prefdag.distributed.process import process
    from prefdag.text.generation import answers, endpoint
    from prefdag.text.generation.decoding import continuations
    from prefdag.text.scoring.rows import pair_rows, read_split
    from prefdag.text.sharded import load_both
    from prefdag.tokenizer.tokenizer import ChatTokenizer

    tokenizer = ChatTokenizer(REFERENCE, format_pairs.template, format_pairs.template_options)
    stop_ids = tokenizer.stop_ids
    test = read_split(PAIRS, "test")
    everything = pd.DataFrame({"id": test.ids, "prompt_ids": [list(map(int, pair.prompt)) for pair in pair_rows(test)]})
    # Several pairs can share a prompt, which is answered once.
    prompts = everything[~everything["prompt_ids"].map(tuple).duplicated()][: answer_text.prompts]
    ids = prompts["prompt_ids"].tolist()
    prompts = prompts.assign(prompt=[tokenizer.decode(each) for each in ids])
    # All models sample with the same noise, so an unchanged policy gives the same answers, and noise cancels out.
    seeds = [[answer_text.seed, *key.encode()] for key in prompts["id"]]
    described: dict[str, Any] = {}
    has_control = not (CONTROL / "off").exists()

    match answer_text.sampler:
        case LocalSampler():

            def answered(model: "nn.Module", name: str) -> list[list[list[int]]]:
                # The greedy and the sampled answer to a prompt are written together.
                return continuations(
                    model,
                    ids,
                    [[None, seed] for seed in seeds],
                    sampling=(answer_text.temperature, answer_text.top_p),
                    max_new_tokens=answer_text.max_new_tokens,
                    stop_ids=stop_ids,
                    batch_size=answer_text.batch_size,
                    name=name,
                )

            models = load_both(REFERENCE, POLICY, shard=answer_text.shard, packed=False)
            both = {name: answered(model, name) for name, model in models._asdict().items()}
            if has_control:
                del models  # before the next two
                control = load_both(REFERENCE, CONTROL, shard=answer_text.shard, packed=False).policy
                both["control"] = answered(control, "control")

            def generate(model: str, name: str, sampling: tuple[float, float] | None) -> dict[str, list[Any]]:
                return {"ids": [greedy if sampling is None else sampled for greedy, sampled in both[model]]}

        case EndpointSampler() as config:
            process()  # it starts when every process calls this
            if rank() > 0:  # the first one asks for several answers at once by itself
                return
            if has_control:
                log.warning("models/control_text: the server does not serve it, so it answers nothing")
                has_control = False
            served, described = endpoint.connect(config, REFERENCE, POLICY, BASE, test)

            def generate(model: str, name: str, sampling: tuple[float, float] | None) -> dict[str, list[Any]]:
                sent = [endpoint.seed_of(seed) for seed in seeds]
                completions = endpoint.completions(
                    served[model],
                    tokenizer,
                    ids,
                    max_new_tokens=answer_text.max_new_tokens,
                    parallel=config.parallel,
                    name=name,
                    sampling=sampling,
                    seeds=sent,
                )
                columns = {name: [getattr(each, name) for each in completions] for name in endpoint.Completion._fields}
                return {"seed": sent, **columns}

    parts = []
    for decoding, sampling in (("greedy", None), ("sampled", (answer_text.temperature, answer_text.top_p))):
        for model in answers.MODELS if has_control else answers.MODELS[:2]:
            columns = generate(model, f"{decoding}, {model}", sampling)
            generated = columns.pop("ids")
            texts = [tokenizer.decode(each[:-1] if each[-1] in stop_ids else each) for each in generated]
            rows = answers.rows(prompts.assign(decoding=decoding, model=model), texts, generated, stop_ids)
            parts.append(rows.assign(**columns))
    table = pd.concat(parts, ignore_index=True)
    if described:
        described = {"sampler": described | {"reencoded": int(table["reencoded"].sum())}}

    with writing(ANSWERS) as rows_file, writing(STATISTICS) as statistics:
        table.to_parquet(rows_file, index=False)
        write_json(statistics, answers.statistics(table) | described)


if __name__ == "__main__":
    main.run()
