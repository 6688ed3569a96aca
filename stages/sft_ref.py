"""Fine-tune the base model on the chosen responses (LoRA) and merge: the reference pi_ref of DPO."""

from pathlib import Path

from prefdag.config import SftRef
from prefdag.stage import stage

PAIRS = Path("data/pairs")
BASE = Path("models/base")
REFERENCE = Path("models/reference")


@stage
def main(sft_ref: SftRef) -> None:
    from prefdag.dpo.session import train_stage
    from prefdag.text import model as lm
    from prefdag.text.rows import chosen_groups, read_split
    from prefdag.text.sft import imitation

    frames = read_split(PAIRS, "train"), read_split(PAIRS, "val")
    train, validation = (imitation(chosen_groups(frame), frame["id"].tolist()) for frame in frames)
    model = lm.add_lora(lm.load(BASE), sft_ref.lora, sft_ref.seed)

    def save(folder: Path) -> None:
        lm.save_merged(model, folder)
        lm.copy_tokenizer(BASE, folder)

    train_stage(
        "sft_ref", {"sft_ref": sft_ref}, model, train, validation, sft_ref.training, sft_ref.seed, REFERENCE, save
    )


if __name__ == "__main__":
    main.run()
