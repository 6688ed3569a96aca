"""Train the policy of the language model with DPO, against cached or live log-probabilities of the reference."""

from pathlib import Path

from prefdag.config import Constraints, DpoText, Loss, LossOptions
from prefdag.stage import stage

PAIRS = Path("data/pairs")
REFERENCE = Path("models/reference")
REF_LOGPS = Path("data/ref_logps")
POLICY = Path("models/dpo_text")


@stage
def main(
    beta: float,
    loss: Loss,
    seed: int,
    loss_options: LossOptions,
    constraints: Constraints,
    dpo_text: DpoText,
) -> None:
    from prefdag.dpo.dpo_session import train_dpo
    from prefdag.dpo.passes import Task
    from prefdag.dpo.preference import START_TOLERANCE, Preference
    from prefdag.dpo.reference import MovingReference, StandsStill
    from prefdag.text import model as lm
    from prefdag.text.preference_task import preference_task
    from prefdag.text.rows import check_ref_logps, pair_rows, presence, read_ref_logps, read_split, soft_labels

    preference = Preference(loss, beta, loss_options, constraints)
    policy = lm.add_adapter(
        lm.load_for(REFERENCE, dpo_text.adapter, "dpo_text.adapter"), dpo_text.adapter, seed, "dpo_text.adapter"
    )
    if dpo_text.gradient_checkpointing:
        lm.checkpoint_gradients(policy)
    frozen = [p for p in policy.parameters() if not p.requires_grad]
    moving = None
    if dpo_text.reference.update != "none":
        moving = MovingReference(lm.frozen_copy(policy), lambda: lm.effective_tensors(policy), dpo_text.reference)
    cached = dpo_text.reference.logps == "cached"
    tolerance = START_TOLERANCE[dpo_text.training.precision]
    live = not cached or preference.needs("kl")
    reference = moving.model if moving else lm.untrained(policy) if live else None

    def task(split: str) -> Task:
        frame = read_split(PAIRS, split)
        pairs = pair_rows(frame, mismatched=preference.needs("kl"))
        constants = soft_labels(frame) | presence(frame)
        preference.check_rows(frame["preference"], "has_chosen" not in constants, f"{PAIRS / split}.parquet")
        if cached:
            logps = read_ref_logps(REF_LOGPS, split, frame, PAIRS, REFERENCE)
            check_ref_logps(logps, lm.before_training(policy), pairs, REF_LOGPS / f"{split}.parquet", tolerance)
            constants |= {f"ref_{name}": t for name, t in logps.items()}
        return preference_task(pairs, frame["id"].tolist(), constants, preference, reference)

    train_dpo(
        "dpo_text",
        {
            "beta": beta,
            "loss": loss,
            "seed": seed,
            "loss_options": loss_options,
            "constraints": constraints,
            "dpo_text": dpo_text,
        },
        policy,
        task("train"),
        task("val"),
        dpo_text,
        seed,
        POLICY,
        lambda folder: lm.save_policy(policy, folder, REFERENCE),
        preference,
        [moving or StandsStill(frozen)],
        starts_at_reference=dpo_text.adapter.kind != "prefix",
    )


if __name__ == "__main__":
    main.run()
