"""Sample the answers of a round: the policy before it answers training prompts that no earlier round took."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdag.config.format_pairs import FormatPairs
from prefdag.config.round import RoundNumber
from prefdag.lifecycle.launcher import rank
from prefdag.runtime.artifacts import read_json, sha256, write_json, writing
from prefdag.runtime.stage import distributed_stage

if TYPE_CHECKING:
    import pandas as pd

PLAN = Path("data/rounds/plan/${key}/sample.json")
SAID = Path("reports/rounds/${item.last}.json")
PAIRS = Path("data/pairs")
FORMATTED = Path("reports/validation/formatted/summary.json")
REFERENCE = Path("models/reference")
BEFORE = Path("${item.before}")
SAMPLES = Path("data/rounds/${key}/samples")


@distributed_stage
def main(number: RoundNumber, /, format_pairs: FormatPairs) -> None:
    from prefdag.rounds.places import place, policies_before

    plan_file, said, before, samples = (place(path, number) for path in (PLAN, SAID, BEFORE, SAMPLES))
    if not read_json(said)["go"]:
        with writing(samples) as folder:
            folder.mkdir()
            (folder / "off").touch()
        return

    from prefdag.config.round import ServedPolicy
    from prefdag.config.samplers import LocalSampler
    from prefdag.distributed.process import process
    from prefdag.pairs.limits import resolved
    from prefdag.rounds.parts import read_parts, sample_parts
    from prefdag.rounds.plan import SamplePlan, read_plan
    from prefdag.rounds.prompts import fetched, prompt_table, read_prompts
    from prefdag.rounds.samples import ASKED
    from prefdag.rounds.sampling import picked, prompts_of, sampled
    from prefdag.rounds.serving import sampled_by_server
    from prefdag.runtime.running import running_stage
    from prefdag.text.generation import endpoint
    from prefdag.text.scoring.rows import read_split
    from prefdag.text.sharded import load_both
    from prefdag.tokenizer.tokenizer import ChatTokenizer
    from prefdag.train.checkpoint import Checkpoints

    plan = read_plan(plan_file, SamplePlan)
    train = read_split(PAIRS, "train")
    tokenizer = ChatTokenizer(REFERENCE, format_pairs.template, format_pairs.template_options)
    if plan.source is None:
        table = prompts_of(train)
    else:
        limits = resolved(format_pairs, FORMATTED)
        table = prompt_table(read_prompts(fetched(plan.source)), PAIRS, tokenizer, limits.max_prompt_tokens)
    picks = picked(table, plan, number)
    prompts = picks[["id", "prompt_ids"]]
    name = f"round {number}"
    described: dict[str, Any] = {}
    stage = running_stage()
    kept = Checkpoints.of_stage(stage.name, stage.params)
    match plan.sampler:
        case LocalSampler():
            policy = load_both(REFERENCE, before, shard=plan.shard, packed=False).policy

            def sample(some: "pd.DataFrame", part: str) -> "pd.DataFrame":
                return sampled(
                    policy, some, plan, tokenizer, samples=plan.samples, number=number, name=f"{name}, {part}"
                )

            parts = sample_parts(kept.folder, prompts, plan.batch_size, sample)
            if rank() > 0:
                return
            answers = read_parts(parts, prompts)
        case ServedPolicy() as config:
            process()  # it starts when every process calls this
            if rank() > 0:  # the first one asks for several answers at once by itself
                return
            earlier = policies_before(number)[:-1]
            served, described = endpoint.connect_policy(config, "rounds.sampler", REFERENCE, before, earlier, train)
            answers = sampled_by_server(
                served, prompts, plan, tokenizer, parallel=config.parallel, number=number, name=name
            )
            described |= {"reencoded": int(answers["reencoded"].sum())}
    answers = answers.assign(prompt=[tokenizer.decode(ids) for ids in answers["prompt_ids"]])
    made = {
        "round": number,
        "policy": sha256(before),
        "sampler": {
            "kind": plan.sampler.kind,
            "temperature": plan.temperature,
            "top_p": plan.top_p,
            "max_new_tokens": plan.max_new_tokens,
            **described,
        },
        "seed": plan.seed,
    }
    with writing(samples) as folder:
        folder.mkdir()
        answers.to_parquet(folder / "answers.parquet", index=False)
        write_json(folder / "made.json", made)
        if plan.source is not None:  # the others are in data/validated
            picks.drop(columns="prompt_ids").to_parquet(folder / ASKED, index=False)
    kept.clear()


if __name__ == "__main__":
    main.run()
