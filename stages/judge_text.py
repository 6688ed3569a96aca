"""Judge the policy's answers against the reference's: verdicts, and the win rate with its interval."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from prefdag.config.judge_text import EndpointJudge, ImplicitJudge, JudgeText, RewardModelJudge
from prefdag.config.loss import Loss
from prefdag.config.loss_options import LossOptions
from prefdag.config.verify import VerifyJudge
from prefdag.lifecycle.errors import ParamsError
from prefdag.lifecycle.launcher import rank
from prefdag.runtime.artifacts import read_table, scratch, write_json, writing
from prefdag.runtime.stage import distributed_stage
from prefdag.runtime.types import Positive

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefdag.text.evaluation.verify import Function

MESSAGES = Path("data/validated/pairs.parquet")
REFERENCE = Path("models/reference")
POLICY = Path("models/dpo_text")
ANSWERS = Path("reports/text/answers.parquet")
VERDICTS = Path("reports/text/verdicts.parquet")
WIN_RATE = Path("reports/text/win_rate.json")


@distributed_stage
def main(beta: Positive, loss: Loss, loss_options: LossOptions, judge_text: JudgeText) -> None:
    from prefdag.dpo.preference import Preference
    from prefdag.pairs.turns import read_dialogues
    from prefdag.text.endpoint import key_from_environment
    from prefdag.text.evaluation import endpoint, judge
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
            rows = read_table(
                MESSAGES, columns=["id", "chosen"], filters=[("id", "in", set(answers["id"]))]
            ).to_pylist()
            chosen = {row["id"]: row["chosen"] for row in rows}
            verdicts = judge.by_checks(pairs, chosen, config, _own_checks())
    # By kind of judge: win rates of different judges are not comparable.
    win_rates = {judge_text.judge.kind: judge.win_rates(pairs, verdicts)}
    with writing(VERDICTS) as rows, writing(WIN_RATE) as rates:
        verdicts.to_parquet(rows, index=False)
        write_json(rates, win_rates)


def _own_checks() -> "Mapping[str, Function]":
    """The user's functions. Raises `ParamsError`."""
    try:
        from stages.verify import CHECKS
    except Exception as error:  # the user's code may raise anything
        message = " ".join(str(error).split())
        raise ParamsError(f"stages/verify.py: {type(error).__name__}: {message}; fix the file") from None
    return CHECKS


if __name__ == "__main__":
    main.run()
