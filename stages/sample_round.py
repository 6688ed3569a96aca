"""Sample the answers of a round: the policy before it answers training prompts that no earlier round took."""

from pathlib import Path

from prefdag.config.format_pairs import FormatPairs
from prefdag.config.round import RoundNumber
from prefdag.runtime.artifacts import read_json, sha256, write_json, writing
from prefdag.runtime.stage import distributed_stage

PLAN = Path("data/rounds/plan/${key}/sample.json")
SAID = Path("reports/rounds/${item.last}.json")
PAIRS = Path("data/pairs")
EVALS = Path("data/raw/evals")
FORMATTED = Path("reports/validation/formatted/summary.json")
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

    from prefdag.pairs.eval_sets import read_eval_sets
    from prefdag.pairs.limits import resolved
    from prefdag.rounds.answering import answered
    from prefdag.rounds.plan import SamplePlan, read_plan
    from prefdag.rounds.prompts import KEY, prompt_table, read_prompts, without_evals
    from prefdag.rounds.samples import ASKED
    from prefdag.rounds.sampling import picked, prompts_of
    from prefdag.runtime.running import running_stage
    from prefdag.text.fetched import fetched
    from prefdag.text.scoring.rows import read_split
    from prefdag.tokenizer.tokenizer import ChatTokenizer
    from prefdag.train.checkpoint import Checkpoints

    plan = read_plan(plan_file, SamplePlan)
    train = read_split(PAIRS, "train")
    tokenizer = ChatTokenizer(REFERENCE, format_pairs.template, format_pairs.template_options)
    if plan.source is None:
        table = prompts_of(train)
    else:
        limits = resolved(format_pairs, FORMATTED)
        rows = without_evals(read_prompts(fetched(plan.source, "prompts", KEY)), read_eval_sets(EVALS))
        table = prompt_table(rows, PAIRS, tokenizer, limits.max_prompt_tokens)
    picks = picked(table, plan, number)
    prompts = picks[["id", "prompt_ids"]]
    stage = running_stage()
    kept = Checkpoints.of_stage(stage.name, stage.params)
    found = answered(plan, prompts, train, tokenizer, REFERENCE, kept.folder, number)
    if found is None:  # the first process does the rest
        return
    answers, described = found
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
