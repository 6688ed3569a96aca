"""Train the policy of a round with DPO on its pairs: from the policy before it, or anew."""

from pathlib import Path

from prefdag.config.constraints import Constraints
from prefdag.config.dpo_text import DpoText
from prefdag.config.loss import Loss
from prefdag.config.loss_options import LossOptions
from prefdag.config.round import RoundNumber
from prefdag.runtime.stage import distributed_stage
from prefdag.runtime.types import Count, Positive

PLAN = Path("data/rounds/plan/${key}/train.json")
NEW = Path("data/rounds/${key}/pairs")
PAIRS = Path("data/pairs")
REFERENCE = Path("models/reference")
BEFORE = Path("${item.before}")
POLICY = Path("models/rounds/${key}")


@distributed_stage
def main(
    number: RoundNumber,
    /,
    beta: Positive,
    loss: Loss,
    seed: Count,
    loss_options: LossOptions,
    constraints: Constraints,
    dpo_text: DpoText,
) -> None:
    from prefdag.dpo.preference import Preference
    from prefdag.rounds import training
    from prefdag.rounds.places import place
    from prefdag.rounds.plan import TrainPlan, read_plan
    from prefdag.rounds.samples import read_pairs
    from prefdag.text.scoring.rows import read_split
    from prefdag.text.sharded import load_both
    from prefdag.text.trainable import save_policy
    from prefdag.train.session import Output, train_stage
    from stages.losses import LOSSES

    preference = Preference(loss, beta, loss_options, constraints, LOSSES)
    plan = read_plan(place(PLAN, number), TrainPlan)
    before, new = place(BEFORE, number), place(NEW, number)
    files = {"train": new, "val": PAIRS}
    splits = {"train": read_pairs(new, plan, number, before), "val": read_split(PAIRS, "val")}
    models = load_both(REFERENCE, before, shard=plan.shard)
    logps = training.all_logps(models, splits, plan, mismatched=preference.uses_kl)
    del models
    policy = training.start_policy(REFERENCE, before, dpo_text, plan, seed)
    run = training.round_run(
        policy, splits, preference, dpo_text, plan, logps, lambda split: f"{files[split] / split}.parquet"
    )
    output = Output(place(POLICY, number), lambda folder: save_policy(policy, folder, REFERENCE))
    train_stage(policy, run.tasks, dpo_text.training, seed, output, run.hooks)


if __name__ == "__main__":
    main.run()
