"""Judge the policy's answers against the reference's: verdicts, and the win rate with its interval."""

from pathlib import Path
from typing import Any

from prefdag.config.judge_text import JudgeText
from prefdag.config.loss import Loss
from prefdag.config.loss_options import LossOptions
from prefdag.runtime.artifacts import read_table, write_json, writing
from prefdag.runtime.stage import distributed_stage
from prefdag.runtime.types import Positive

MESSAGES = Path("data/validated/pairs.parquet")
REFERENCE = Path("models/reference")
POLICY = Path("models/policy")
ANSWERS = Path("reports/text/answers.parquet")
VERDICTS = Path("reports/text/verdicts.parquet")
WIN_RATE = Path("reports/text/win_rate.json")


@distributed_stage
def main(beta: Positive, loss: Loss, loss_options: LossOptions, judge_text: JudgeText) -> None:
    from prefdag.dpo.preference import Preference
    from prefdag.pairs.turns import read_dialogues
    from prefdag.text.evaluation import judge, judging

    def preference() -> Preference:
        from stages.losses import LOSSES

        return Preference(loss, beta, loss_options, {}, LOSSES)

    def checks() -> dict[str, Any]:
        from stages.verify import CHECKS

        return CHECKS

    answers = read_table(ANSWERS).to_pandas()
    reference, policy = (answers[answers["model"] == model] for model in ("reference", "policy"))
    pairs = judge.contests(reference, policy, read_dialogues(MESSAGES, answers["id"]))
    needs = judging.Needs(REFERENCE, POLICY, judge_text, MESSAGES, preference, checks)
    found = judging.all_verdicts({"judge": judge_text.judge}, pairs, needs, "judge_text")
    if found is None:  # the first process does the rest
        return
    verdicts = found["judge"]
    # By kind of judge: win rates of different judges are not comparable.
    win_rates = {judge_text.judge.kind: judge.win_rates(pairs, verdicts)}
    with writing(VERDICTS) as rows, writing(WIN_RATE) as rates:
        verdicts.to_parquet(rows, index=False)
        write_json(rates, win_rates)


if __name__ == "__main__":
    main.run()
