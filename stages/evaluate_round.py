"""Compare the policy of a round with the one before it on validation prompts, and decide whether a further round may follow."""

from pathlib import Path
from typing import Any

from prefdag.config.format_pairs import FormatPairs
from prefdag.config.loss import Loss
from prefdag.config.loss_options import LossOptions
from prefdag.config.round import RoundNumber
from prefdag.runtime.artifacts import read_json, write_json, writing
from prefdag.runtime.stage import distributed_stage
from prefdag.runtime.types import Positive

PLAN = Path("data/rounds/plan/${key}/evaluate.json")
NEW = Path("data/rounds/${key}/pairs")
PAIRS = Path("data/pairs")
MESSAGES = Path("data/validated/pairs.parquet")
REFERENCE = Path("models/reference")
REWARD_MODEL = Path("models/reward_model")
BEFORE = Path("${item.before}")
POLICY = Path("models/rounds/${key}")
RESULT = Path("reports/rounds/${key}.json")


@distributed_stage
def main(
    number: RoundNumber, /, beta: Positive, loss: Loss, loss_options: LossOptions, format_pairs: FormatPairs
) -> None:
    from prefdag.config.judges import automatic
    from prefdag.dpo.preference import Preference
    from prefdag.pairs.turns import read_dialogues
    from prefdag.rounds import comparing
    from prefdag.rounds.judging import head_to_head
    from prefdag.rounds.places import place
    from prefdag.rounds.plan import EvaluatePlan, read_plan
    from prefdag.rounds.sampling import prompts_of, sampled
    from prefdag.rounds.stopping import reasons_to_stop
    from prefdag.text.evaluation.judging import Needs, all_verdicts
    from prefdag.text.generation.answers import ids_without_end
    from prefdag.text.scoring.rows import read_split
    from prefdag.text.sharded import load_both
    from prefdag.tokenizer.tokenizer import ChatTokenizer

    def preference() -> Preference:
        from stages.losses import LOSSES

        return Preference(loss, beta, loss_options, {}, LOSSES)

    def checks() -> dict[str, Any]:
        from stages.verify import CHECKS

        return CHECKS

    plan = read_plan(place(PLAN, number), EvaluatePlan)
    before, policy = place(BEFORE, number), place(POLICY, number)
    prompts = prompts_of(read_split(PAIRS, "val"))[: plan.prompts]
    tokenizer = ChatTokenizer(REFERENCE, format_pairs.template, format_pairs.template_options)
    answers, kl = {}, {}
    for name, folder in (("before", before), ("after", policy)):
        model = load_both(REFERENCE, folder, shard=plan.shard, packed=False).policy
        answers[name] = sampled(model, prompts, plan, tokenizer, samples=1, number=number, name=f"validation, {name}")
        models = load_both(REFERENCE, folder, shard=plan.shard)
        kl[name] = comparing.kl_to_reference(models, answers[name], plan.tokens_per_batch)

    judges = automatic(plan.judge) | ({"stopping_judge": plan.stopping_judge} if plan.stopping_judge else {})
    contests = head_to_head(answers["before"], answers["after"], read_dialogues(MESSAGES, prompts["id"]))
    needs = Needs(REFERENCE, before, REWARD_MODEL, plan, MESSAGES, preference, checks)
    verdicts = all_verdicts(judges, contests, needs, "rounds")
    if verdicts is None:  # the first process does the rest
        return
    rates = comparing.rates(contests, comparing.merged_verdicts(verdicts))
    win_rate = rates["stopping_judge"]["win_rate"] if plan.stopping_judge else None
    reasons = reasons_to_stop(plan, win_rate, kl["after"]["kl_to_reference"])
    result = {
        "round": number,
        "go": not reasons,
        "start": plan.start,
        "reference": plan.reference,
        "reasons": reasons,
        **kl["after"],
        "before": comparing.means(answers["before"]) | kl["before"],
        "after": comparing.means(answers["after"]),
        "change": comparing.distinct_change(*map(ids_without_end, answers.values())),
        "pairs": read_json(place(NEW, number) / "summary.json"),
        "judge": {"n": len(prompts)},  # of people there is no more to say: they are not asked about validation prompts
        **rates,
    }
    with writing(place(RESULT, number)) as path:
        write_json(path, result)


if __name__ == "__main__":
    main.run()
