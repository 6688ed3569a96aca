"""Sample the answers of a round: the policy before it answers training prompts that no earlier round took."""

from pathlib import Path
from typing import TYPE_CHECKING

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
REFERENCE = Path("models/reference")
BEFORE = Path("${item.before}")
SAMPLES = Path("data/rounds/${key}/samples")


@distributed_stage
def main(number: RoundNumber, /, format_pairs: FormatPairs) -> None:
    from prefdag.rounds.places import place

    plan_file, said, before, samples = (place(path, number) for path in (PLAN, SAID, BEFORE, SAMPLES))
    if not read_json(said)["go"]:
        with writing(samples) as folder:
            folder.mkdir()
            (folder / "off").touch()
        return

    from prefdag.rounds.parts import read_parts, sample_parts
    from prefdag.rounds.plan import SamplePlan, read_plan
    from prefdag.rounds.sampling import picked, prompts_of, sampled
    from prefdag.runtime.running import running_stage
    from prefdag.text.scoring.rows import read_split
    from prefdag.text.sharded import load_both
    from prefdag.tokenizer.tokenizer import ChatTokenizer
    from prefdag.train.checkpoint import Checkpoints

    plan = read_plan(plan_file, SamplePlan)
    prompts = picked(prompts_of(read_split(PAIRS, "train")), plan, number)
    tokenizer = ChatTokenizer(REFERENCE, format_pairs.template, format_pairs.template_options)
    policy = load_both(REFERENCE, before, shard=plan.shard, packed=False).policy

    def sample(some: "pd.DataFrame", name: str) -> "pd.DataFrame":
        return sampled(
            policy, some, plan, tokenizer, samples=plan.samples, number=number, name=f"round {number}, {name}"
        )

    stage = running_stage()
    kept = Checkpoints.of_stage(stage.name, stage.params)
    parts = sample_parts(kept.folder, prompts, plan.batch_size, sample)
    if rank() > 0:
        return
    answers = read_parts(parts, prompts)
    answers = answers.assign(prompt=[tokenizer.decode(ids) for ids in answers["prompt_ids"]])
    made = {
        "round": number,
        "policy": sha256(before),
        "sampler": {
            "kind": "local",
            "temperature": plan.temperature,
            "top_p": plan.top_p,
            "max_new_tokens": plan.max_new_tokens,
        },
        "seed": plan.seed,
    }
    with writing(samples) as folder:
        folder.mkdir()
        answers.to_parquet(folder / "answers.parquet", index=False)
        write_json(folder / "made.json", made)
    kept.clear()


if __name__ == "__main__":
    main.run()
