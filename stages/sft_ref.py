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
    key = "sft_ref.adapter"
    model = trainable.add_adapter(
        trainable.load_for_training(BASE, sft_ref.adapter, key), sft_ref.adapter, sft_ref.seed, key
    )
    if sft_ref.gradient_checkpointing:
        trainable.checkpoint_gradients(model)
    if sft_ref.shard == "full":
        trainable.shard(model)

    def save(folder: Path) -> None:
        trainable.save_merged(model, folder)
        trainable.copy_tokenizer(BASE, folder)

    train_stage(model, Tasks(train, validation), sft_ref.training, sft_ref.seed, Output(REFERENCE, save))


if __name__ == "__main__":
    main.run()
