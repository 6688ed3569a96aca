"""Make the pairs of a round: a judge scores the sampled answers; pairs of earlier rounds are carried along."""

from pathlib import Path
from typing import Any

from prefdag.config.format_pairs import FormatPairs
from prefdag.config.loss import Loss
from prefdag.config.loss_options import LossOptions
from prefdag.config.round import RoundNumber
from prefdag.runtime.artifacts import writing
from prefdag.runtime.stage import distributed_stage
from prefdag.runtime.types import Positive

PLAN = Path("data/rounds/plan/${key}/judge.json")
SAMPLES = Path("data/rounds/${key}/samples")
EARLIER = Path("data/rounds/${item.last}/pairs")
LABELS = Path("labels/round-${key}")
MESSAGES = Path("data/validated/pairs.parquet")
REFERENCE = Path("models/reference")
REWARD_MODEL = Path("models/reward_model")
BEFORE = Path("${item.before}")
PAIRS = Path("data/rounds/${key}/pairs")


@distributed_stage
def main(
    number: RoundNumber, /, beta: Positive, loss: Loss, loss_options: LossOptions, format_pairs: FormatPairs
) -> None:
    import numpy as np
    from pydantic_core import to_jsonable_python

    from prefdag.config.judges import people
    from prefdag.dpo.preference import Preference
    from prefdag.pairs.turns import read_dialogues
    from prefdag.rounds import pairing
    from prefdag.rounds.asking import judged_by_all
    from prefdag.rounds.people import judged_by_people, with_names
    from prefdag.rounds.places import place
    from prefdag.rounds.plan import JudgePlan, read_plan
    from prefdag.rounds.samples import ASKED, read_samples
    from prefdag.rounds.votes import merged, rows_by_prompt
    from prefdag.text.evaluation.judging import Needs
    from prefdag.tokenizer.tokenizer import ChatTokenizer

    def preference() -> Preference:
        from stages.losses import LOSSES

        return Preference(loss, beta, loss_options, {}, LOSSES)

    def checks() -> dict[str, Any]:
        from stages.verify import CHECKS

        return CHECKS

    before, pairs = place(BEFORE, number), place(PAIRS, number)
    plan = read_plan(place(PLAN, number), JudgePlan)
    answers, made = read_samples(place(SAMPLES, number), before)
    own = place(SAMPLES, number) / ASKED
    messages = own if own.exists() else MESSAGES
    dialogues = read_dialogues(messages, answers["id"].unique())
    needs = Needs(REFERENCE, before, REWARD_MODEL, plan, messages, preference, checks)
    found = judged_by_all(plan, answers, dialogues, needs)
    if found is None:  # the first process does the rest
        return
    answers, each = found
    labelled = None
    if (config := people(plan.judge)) is not None:
        labelled = judged_by_people(config, answers, dialogues, place(LABELS, number))
        each += labelled.each.values()
    one = len(each) == 1 and labelled is None
    scores, votes = each[0] if one else merged(each, rows_by_prompt(answers))
    answers = answers.assign(score=scores, scores=np.stack([judged.scores for judged in each], axis=1).tolist())
    tokenizer = ChatTokenizer(REFERENCE, format_pairs.template, format_pairs.template_options)
    judge = with_names(to_jsonable_python(plan.judge), labelled.each if labelled else ())
    new, counts = pairing.pair_table(answers, votes, plan, made, judge, tokenizer.stop_ids[0])
    table = pairing.carried(place(EARLIER, number), new)
    with writing(pairs) as folder:
        folder.mkdir()
        said = {"people": labelled.summary} if labelled else {}
        pairing.write(folder, table, answers, {**counts, "round": number, **said})
        if labelled:
            labelled.labels.to_csv(folder / "labels.csv", index=False, lineterminator="\n")


if __name__ == "__main__":
    main.run()
