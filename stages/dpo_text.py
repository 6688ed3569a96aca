"""Train the policy of the language model with DPO (LoRA), against the cached log-probabilities of the reference."""

from collections.abc import Sequence
from pathlib import Path

from prefdag.config import DpoText, LossName
from prefdag.stage import stage

PAIRS = Path("data/pairs")
REFERENCE = Path("models/reference")
REF_LOGPS = Path("data/ref_logps")
POLICY = Path("models/dpo_text")


@stage
def main(beta: float, loss: LossName, seed: int, dpo_text: DpoText) -> None:
    import torch

    from prefdag.dpo.losses import START_TOLERANCE, Preference
    from prefdag.dpo.session import train_stage
    from prefdag.dpo.trainer import Outcome, Task
    from prefdag.text import model as lm
    from prefdag.text.logps import pair_logps
    from prefdag.text.rows import pair_groups, read_ref_logps, read_split

    preference = Preference(loss, beta, dpo_text.label_smoothing)

    def task(split: str) -> Task:
        frame = read_split(PAIRS, split)
        groups = pair_groups(frame)
        cached = read_ref_logps(REF_LOGPS, split, frame, PAIRS, REFERENCE)
        reference = torch.tensor(cached[["chosen_logps", "rejected_logps"]].to_numpy(), dtype=torch.float32)

        def objective(model: torch.nn.Module, rows: Sequence[int], epoch: int | None) -> Outcome:
            chosen, rejected = pair_logps(model, [groups[i] for i in rows])
            return preference.outcome(chosen, rejected, *reference[list(rows)].to(chosen.device).unbind(1))

        return Task(objective, [1.0] * len(groups), frame["id"].tolist())

    model = lm.add_lora(lm.load(REFERENCE), dpo_text.lora, seed)
    train_stage(
        "dpo_text",
        {"beta": beta, "loss": loss, "seed": seed, "dpo_text": dpo_text},
        model,
        task("train"),
        task("val"),
        dpo_text.training,
        seed,
        POLICY,
        lambda folder: lm.save_adapter(model, folder, REFERENCE),
        preference.check_start(START_TOLERANCE[dpo_text.training.precision]),
    )


if __name__ == "__main__":
    main.run()
