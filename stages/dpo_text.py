"""Train the language model's policy with DPO, against cached or live log-probabilities of the reference."""

from pathlib import Path
from typing import TYPE_CHECKING

from prefdag.config.constraints import Constraints
from prefdag.config.dpo_text import DpoText
from prefdag.config.loss import Loss
from prefdag.config.loss_options import LossOptions
from prefdag.runtime.types import Count, Positive
from prefdag.stage import stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from prefdag.text.dpo_task import RefLogps
    from prefdag.text.scoring.logps import Pair
    from prefdag.train.hook import StepHook

PAIRS = Path("data/pairs")
REFERENCE = Path("models/reference")
REF_LOGPS = Path("data/ref_logps")
POLICY = Path("models/dpo_text")


@stage
def main(
    beta: Positive,
    loss: Loss,
    seed: Count,
    loss_options: LossOptions,
    constraints: Constraints,
    dpo_text: DpoText,
) -> None:
    from prefdag.dpo.preference import Preference
    from prefdag.dpo.reference import FrozenCheck, MovingReference
    from prefdag.dpo.start import START_TOLERANCE, StartCheck
    from prefdag.text import trainable
    from prefdag.text.dpo_task import cached_logps, dpo_task, live_logps
    from prefdag.text.scoring.rows import check_ref_logps, pair_rows, presence, read_ref_logps, read_split, soft_labels
    from prefdag.train.session import Output, train_stage
    from prefdag.train.task import Task, Tasks

    preference = Preference(loss, beta, loss_options, constraints)
    preference.check_reference(dpo_text.reference, "dpo_text.reference")
    policy = trainable.add_adapter(
        trainable.load_for_training(REFERENCE, dpo_text.adapter, "dpo_text.adapter"),
        dpo_text.adapter,
        seed,
        "dpo_text.adapter",
    )
    if dpo_text.gradient_checkpointing:
        trainable.checkpoint_gradients(policy)
    frozen = [p for p in policy.parameters() if not p.requires_grad]
    moving = None
    if dpo_text.reference.update != "none":
        moving = MovingReference(
            trainable.frozen_copy(policy), lambda: trainable.effective_tensors(policy), dpo_text.reference
        )
    cached = dpo_text.reference.logps == "cached"
    tolerance = START_TOLERANCE[dpo_text.training.precision]
    live = not cached or preference.uses_kl
    # Only if needed: with a fully trained policy, `untrained` is a copy.
    reference = moving.model if moving else trainable.untrained(policy) if live else None

    def ref_logps(split: str, frame: "pd.DataFrame", pairs: "Sequence[Pair]") -> "RefLogps":
        live = live_logps(reference, pairs) if reference else None
        if live and not cached:
            return live
        logps = read_ref_logps(REF_LOGPS, split, frame, PAIRS, REFERENCE)
        check_ref_logps(logps, trainable.before_training(policy), pairs, REF_LOGPS / f"{split}.parquet", tolerance)
        return cached_logps(logps, live)

    def task(split: str) -> Task:
        frame = read_split(PAIRS, split)
        pairs = pair_rows(frame, mismatched=preference.uses_kl)
        labels, present = soft_labels(frame), presence(frame)
        preference.check_rows(frame["preference"], present is None, f"{PAIRS / split}.parquet")
        ids, logps = frame["id"].tolist(), ref_logps(split, frame, pairs)
        return dpo_task(pairs, ids, preference, logps, labels=labels, present=present)

    hooks: list[StepHook] = [preference, moving or FrozenCheck(frozen)]
    if dpo_text.adapter.kind != "prefix":  # a new prefix does not start at the reference
        hooks.append(StartCheck(tolerance))
    tasks = Tasks(task("train"), task("val"))
    output = Output(POLICY, lambda folder: trainable.save_policy(policy, folder, REFERENCE))
    train_stage(policy, tasks, dpo_text.training, seed, output, hooks)


if __name__ == "__main__":
    main.run()
