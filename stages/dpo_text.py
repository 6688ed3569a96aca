"""Train the policy of the language model with DPO, against cached or live log-probabilities of the reference."""

from collections.abc import Sequence
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
    import torch

    from prefdag.dpo.dpo_session import train_dpo
    from prefdag.dpo.preference import Preference
    from prefdag.dpo.reference import MovingReference, StandsStill
    from prefdag.dpo.trainer import Said, Task
    from prefdag.text import model as lm
    from prefdag.text.logps import score_pairs
    from prefdag.text.rows import pair_rows, presence, read_ref_logps, read_split, soft_labels

    preference = Preference(loss, beta, loss_options, constraints)
    policy = lm.add_adapter(
        lm.load_for(REFERENCE, dpo_text.adapter, "dpo_text.adapter"), dpo_text.adapter, seed, "dpo_text.adapter"
    )
    frozen = [p for p in policy.parameters() if not p.requires_grad]
    moving = None
    if dpo_text.reference.update != "none":
        moving = MovingReference(lm.frozen_copy(policy), lambda: lm.effective_tensors(policy), dpo_text.reference)
    cached = dpo_text.reference.logps == "cached"
    live = not cached or preference.needs("kl")
    reference = moving.model if moving else lm.untrained(policy) if live else None

    def task(split: str) -> Task:
        frame = read_split(PAIRS, split)
        pairs = pair_rows(frame, mismatched=preference.needs("kl"))
        constants = soft_labels(frame) | presence(frame)
        preference.check_rows(frame["preference"], "has_chosen" not in constants, f"{PAIRS / split}.parquet")
        if cached:
            logps = read_ref_logps(REF_LOGPS, split, frame, PAIRS, REFERENCE)
            constants |= {f"ref_{name}": t for name, t in logps.items()}

        def score(model: torch.nn.Module, rows: Sequence[int], epoch: int | None) -> Said:
            batch = [pairs[i] for i in rows]
            said = score_pairs(model, batch, confidence=preference.needs("confidence"))
            if reference:
                with torch.no_grad():
                    said |= {f"ref_{name}": t for name, t in score_pairs(reference, batch).items()}
            said |= {name: values[list(rows)].to(said["chosen"]) for name, values in constants.items()}
            if "mismatched" in said:
                said["kl"] = said["mismatched"].detach() - said["ref_mismatched"]
            return said

        return Task(score, preference, [1.0] * len(pairs), frame["id"].tolist(), preference.jointly)

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
