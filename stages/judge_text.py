"""Judge the policy's answers against the reference's: verdicts, and the win rate with its interval."""

import hashlib
from pathlib import Path

from prefdag.config.judge_text import JudgeText
from prefdag.config.judges import EndpointJudge, ImplicitJudge, RewardModelJudge
from prefdag.config.loss import Loss
from prefdag.config.loss_options import LossOptions
from prefdag.config.verify import VerifyJudge
from prefdag.lifecycle.launcher import rank
from prefdag.runtime.artifacts import read_table, scratch, write_json, writing
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
    from prefdag.text.endpoint import key_from_environment
    from prefdag.text.evaluation import endpoint, judge, verify
    from prefdag.text.sharded import load_both
    from stages.losses import LOSSES

    answers = read_table(ANSWERS).to_pandas()
    pairs = judge.contests(answers, read_dialogues(MESSAGES, answers["id"]))
    match judge_text.judge:
        case ImplicitJudge():
            preference = Preference(loss, beta, loss_options, {}, LOSSES)
            models = load_both(REFERENCE, POLICY, shard=judge_text.shard)
            verdicts = judge.implicit(pairs, models, preference, judge_text.tokens_per_batch)
        case RewardModelJudge(source=source):
            pinned = hashlib.sha256(repr(source).encode()).hexdigest()[:16]
            verdicts = judge.reward_model(pairs, judge.fetch_reward_model(source, scratch("reward_models", pinned)))
        case EndpointJudge() as config:
            if rank() > 0:  # it asks several contests at once by itself
                return
            verdicts = endpoint.judge(pairs, config, key_from_environment(endpoint.KEY))
        case VerifyJudge() as config:
            if rank() > 0:  # it takes no time
                return
            with verify.checking_own_file():
                from stages.verify import CHECKS
            chosen = judge.chosen_responses(MESSAGES, answers["id"])
            verdicts = judge.by_checks(pairs, chosen, config, CHECKS)
    # By kind of judge: win rates of different judges are not comparable.
    win_rates = {judge_text.judge.kind: judge.win_rates(pairs, verdicts)}
    with writing(VERDICTS) as rows, writing(WIN_RATE) as rates:
        verdicts.to_parquet(rows, index=False)
        write_json(rates, win_rates)


if __name__ == "__main__":
    main.run()
