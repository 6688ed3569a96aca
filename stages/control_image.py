"""Train the control of the image track: from the same reference, with the budget of DPO, but under cross-entropy."""

from pathlib import Path

from prefdag.config import DpoImage
from prefdag.stage import stage

IMAGES = Path("data/validated/images")
PAIRS = Path("data/image_pairs")
REFERENCE = Path("models/resnet_reference")
CONTROL = Path("models/control_image")


@stage
def main(seed: int, dpo_image: DpoImage) -> None:
    from prefdag.dpo.session import train_stage
    from prefdag.image import model as resnet
    from prefdag.image.classify import classification
    from prefdag.image.data import Augmentation, load_splits

    splits = load_splits(IMAGES, PAIRS)
    augment = Augmentation(dpo_image.max_shift, dpo_image.flip, seed)
    model, architecture = resnet.load(REFERENCE)
    train_stage(
        "control_image",
        {"seed": seed, "dpo_image": dpo_image},
        model,
        classification(splits["train"], augment),
        classification(splits["val"], augment),
        dpo_image.training,
        seed,
        CONTROL,
        lambda folder: resnet.save(model, architecture, folder),
    )


if __name__ == "__main__":
    main.run()
