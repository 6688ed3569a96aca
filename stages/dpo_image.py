"""Train the policy of the image classifier with DPO: the true class preferred to another, against the frozen reference."""

from collections.abc import Sequence
from pathlib import Path

from prefdag.config import DpoImage, LossName
from prefdag.stage import stage

IMAGES = Path("data/validated/images")
PAIRS = Path("data/image_pairs")
REFERENCE = Path("models/resnet_reference")
POLICY = Path("models/dpo_image")


@stage
def main(beta: float, loss: LossName, seed: int, dpo_image: DpoImage) -> None:
    import torch

    from prefdag.dpo.losses import START_TOLERANCE, Preference
    from prefdag.dpo.session import train_stage
    from prefdag.dpo.trainer import Outcome, Task
    from prefdag.image import model as resnet
    from prefdag.image.classify import class_logps, view
    from prefdag.image.data import Augmentation, ImagePairs, load_splits

    preference = Preference(loss, beta, dpo_image.label_smoothing)
    augment = Augmentation(dpo_image.max_shift, dpo_image.flip, seed)
    # Both in eval mode, the policy too: it then starts at the reference, whose batch statistics it keeps.
    policy, architecture = resnet.load(REFERENCE)
    reference = resnet.load(REFERENCE)[0].requires_grad_(False)

    def task(split: ImagePairs) -> Task:
        def objective(model: torch.nn.Module, rows: Sequence[int], epoch: int | None) -> Outcome:
            images = view(split, rows, epoch, augment)
            classes = torch.stack([split.y_w[list(rows)], split.y_l[list(rows)]], dim=1)
            with torch.no_grad():
                ref_logps = class_logps(reference, images).gather(1, classes)
            logps = class_logps(model, images).gather(1, classes)
            return preference.outcome(*logps.unbind(1), *ref_logps.unbind(1))

        return Task(objective, [1.0] * len(split), split.ids)

    splits = load_splits(IMAGES, PAIRS)
    train_stage(
        "dpo_image",
        {"beta": beta, "loss": loss, "seed": seed, "dpo_image": dpo_image},
        policy,
        task(splits["train"]),
        task(splits["val"]),
        dpo_image.training,
        seed,
        POLICY,
        lambda folder: resnet.save(policy, architecture, folder),
        preference.check_start(START_TOLERANCE[dpo_image.training.precision]),
    )


if __name__ == "__main__":
    main.run()
