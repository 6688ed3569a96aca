"""Train the language model's policy with DPO, against cached or live log-probabilities of the reference."""

from pathlib import Path
from typing import TYPE_CHECKING

from prefdag.config.constraints import Constraints
from prefdag.config.dpo_text import DpoText
from prefdag.config.loss import Loss
from prefdag.config.loss_options import LossOptions
from prefdag.runtime.stage import distributed_stage
from prefdag.runtime.types import Count, Positive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefdag.text.scoring.logps import Pair, PairLogps

PAIRS = Path("data/pairs")
REFERENCE = Path("models/reference")
REF_LOGPS = Path("data/ref_logps")
POLICY = Path("models/dpo_text")


@distributed_stage
def main(
    beta: Positive,
    loss: Loss,
    seed: Count,
    loss_options: LossOptions,
    constraints: Constraints,
    dpo_text: DpoText,
) -> None:
    from prefdag.dpo.preference import Preference
    from prefdag.dpo.start import START_TOLERANCE
    from prefdag.text import trainable
    from prefdag.text.dpo_run import dpo_run, new_policy
    from prefdag.text.scoring.rows import check_ref_logps, read_ref_logps, read_split
    from prefdag.train.session import Output, train_stage
    from stages.losses import LOSSES

    preference = Preference(loss, beta, loss_options, constraints, LOSSES)
    preference.check_reference(dpo_text.reference, "dpo_text.reference")
    policy = new_policy(REFERENCE, dpo_text, seed)

    def cached(split: str, ids: "Sequence[str]", pairs: "Sequence[Pair]") -> "PairLogps":
        logps = read_ref_logps(REF_LOGPS, split, ids, PAIRS, REFERENCE)
        tolerance = START_TOLERANCE[dpo_text.training.precision]
        check_ref_logps(logps, trainable.before_training(policy), pairs, REF_LOGPS / f"{split}.parquet", tolerance)
        return logps

    splits = {split: read_split(PAIRS, split) for split in ("train", "val")}
    run = dpo_run(policy, splits, preference, dpo_text, cached, lambda split: f"{PAIRS / split}.parquet")
    output = Output(POLICY, lambda folder: trainable.save_policy(policy, folder, REFERENCE))
    train_stage(policy, run.tasks, dpo_text.training, seed, output, run.hooks)


if __name__ == "__main__":
    main.run()
