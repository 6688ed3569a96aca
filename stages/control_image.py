"""Train the control of the image track: from the same reference and with the same budget as DPO, but with cross-entropy."""

from pathlib import Path

from prefdag.config.dpo_image import DpoImage
from prefdag.runtime.stage import distributed_stage
from prefdag.runtime.types import Count

IMAGES = Path("data/validated/images")
PAIRS = Path("data/image_pairs")
REFERENCE = Path("models/resnet_reference")
CONTROL = Path("models/control_image")


@distributed_stage
def main(seed: Count, dpo_image: DpoImage) -> None:
    from prefdag.image import model as resnet
    from prefdag.image.classification_task import classification_task
    from prefdag.image.data import Augmentation, load_splits
    from prefdag.train.session import Output, train_stage
    from prefdag.train.task import Tasks

    splits = load_splits(IMAGES, PAIRS)
    augment = Augmentation(dpo_image.max_shift, dpo_image.flip, seed)
    model, architecture = resnet.load(REFERENCE)
    tasks = Tasks(*(classification_task(splits[name], augment) for name in ("train", "val")))
    output = Output(CONTROL, lambda folder: resnet.save(model, architecture, folder))
    train_stage(model, tasks, dpo_image.training, seed, output)


if __name__ == "__main__":
    main.run()
