"""Train the control of the text track: from the same reference and with the same budget as DPO, but with cross-entropy."""

from dataclasses import replace
from pathlib import Path

from prefdag.config.control_text import ControlText
from prefdag.config.dpo_text import DpoText
from prefdag.lifecycle.launcher import rank
from prefdag.runtime.artifacts import writing
from prefdag.runtime.stage import distributed_stage
from prefdag.runtime.types import Count

PAIRS = Path("data/pairs")
REFERENCE = Path("models/reference")
CONTROL = Path("models/control_text")


@distributed_stage
def main(seed: Count, dpo_text: DpoText, control_text: ControlText) -> None:
    if not control_text.train:
        if rank() == 0:
            with writing(CONTROL) as folder:
                folder.mkdir()
                (folder / "off").touch()
        return

    from prefdag.text import trainable
    from prefdag.text.dpo_run import new_policy
    from prefdag.text.scoring.rows import chosen_groups, read_split, with_chosen
    from prefdag.text.sft_task import sft_task
    from prefdag.train.session import Output, train_stage
    from prefdag.train.task import Tasks

    taught = [with_chosen(read_split(PAIRS, split)) for split in ("train", "val")]
    train, validation = (sft_task(chosen_groups(pairs), pairs.ids) for pairs in taught)
    model = new_policy(REFERENCE, dpo_text, seed)
    training = replace(dpo_text.training, learning_rate=control_text.learning_rate)
    output = Output(CONTROL, lambda folder: trainable.save_policy(model, folder, REFERENCE))
    train_stage(model, Tasks(train, validation), training, seed, output)


if __name__ == "__main__":
    main.run()
