"""Fine-tune the base model on the chosen responses: the reference pi_ref of DPO, adapters merged."""

from pathlib import Path

from prefdag.config.sft_ref import SftRef
from prefdag.runtime.stage import distributed_stage

PAIRS = Path("data/pairs")
BASE = Path("models/base")
REFERENCE = Path("models/reference")


@distributed_stage
def main(sft_ref: SftRef) -> None:
    from prefdag.text import trainable
    from prefdag.text.scoring.rows import chosen_groups, read_split, with_chosen
    from prefdag.text.sft_task import sft_task
    from prefdag.train.session import Output, train_stage
    from prefdag.train.task import Tasks

    taught = [with_chosen(read_split(PAIRS, split)) for split in ("train", "val")]
    train, validation = (sft_task(chosen_groups(pairs), pairs.ids) for pairs in taught)
    model = trainable.new_policy(BASE, sft_ref, sft_ref.seed, "sft_ref.adapter")

    def save(folder: Path) -> None:
        trainable.save_merged(model, folder, sft_ref.save_dtype)
        trainable.copy_tokenizer(BASE, folder)

    train_stage(model, Tasks(train, validation), sft_ref.training, sft_ref.seed, Output(REFERENCE, save))


if __name__ == "__main__":
    main.run()
