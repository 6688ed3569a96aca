"""Fine-tune the base model on the chosen responses: the reference pi_ref of DPO, adapters merged."""

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
    taught = [frame[frame["chosen_ids"].map(len) > 0] for frame in frames]  # unpaired data has rows without
    train, validation = (imitation(chosen_groups(frame), frame["id"].tolist()) for frame in taught)
    key = "sft_ref.adapter"
    model = lm.add_adapter(lm.load_for(BASE, sft_ref.adapter, key), sft_ref.adapter, sft_ref.seed, key)
    if sft_ref.gradient_checkpointing:
        lm.checkpoint_gradients(model)

    def save(folder: Path) -> None:
        lm.save_merged(model, folder)
        lm.copy_tokenizer(BASE, folder)

    train_stage(
        "sft_ref", {"sft_ref": sft_ref}, model, train, validation, sft_ref.training, sft_ref.seed, REFERENCE, save
    )


if __name__ == "__main__":
    main.run()
