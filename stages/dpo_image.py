"""Train the image classifier's policy with DPO: the true class is preferred to another, against the reference."""

from pathlib import Path

from prefdag.config.constraints import Constraints
from prefdag.config.dpo_image import DpoImage
from prefdag.config.loss import Loss
from prefdag.config.loss_options import LossOptions
from prefdag.runtime.stage import distributed_stage
from prefdag.runtime.types import Count, Positive

IMAGES = Path("data/validated/images")
PAIRS = Path("data/image_pairs")
REFERENCE = Path("models/resnet_reference")
POLICY = Path("models/dpo_image")


@distributed_stage
def main(
    beta: Positive,
    loss: Loss,
    seed: Count,
    loss_options: LossOptions,
    constraints: Constraints,
    dpo_image: DpoImage,
) -> None:
    from prefdag.dpo.preference import Preference
    from prefdag.dpo.reference import FrozenCheck, MovingReference
    from prefdag.dpo.start import START_TOLERANCE, StartCheck
    from prefdag.image import model as resnet
    from prefdag.image.data import Augmentation, load_splits
    from prefdag.image.dpo_task import dpo_task, reference_logps
    from prefdag.image.negatives import negatives
    from prefdag.train.session import Output, train_stage
    from prefdag.train.task import Task, Tasks
    from stages.losses import LOSSES

    preference = Preference(loss, beta, loss_options, constraints, LOSSES)
    preference.check_reference(dpo_image.reference, "dpo_image.reference")
    augment = {"train": Augmentation(dpo_image.max_shift, dpo_image.flip, seed), "val": Augmentation(0, False, seed)}
    # Both in eval mode: the policy keeps the batch statistics of the reference, and so starts at the reference.
    policy, architecture = resnet.load(REFERENCE)
    reference = resnet.load(REFERENCE)[0].requires_grad_(False)
    splits = load_splits(IMAGES, PAIRS)
    seen = {name: splits[name] for name in ("train", "val")}
    y_l = negatives(dpo_image.negatives, seen, reference, architecture.classes, seed)

    def task(name: str) -> Task:
        ref_logps = reference_logps(reference, seen[name].images, augment[name], dpo_image)
        return dpo_task(seen[name], augment[name], y_l[name], ref_logps, preference)

    frozen = FrozenCheck([*reference.parameters(), *reference.buffers()], policy.buffers())
    moving = MovingReference(
        reference, lambda: dict(policy.named_parameters()) | dict(policy.named_buffers()), dpo_image.reference
    )
    still = dpo_image.reference.update == "none"
    hooks = [preference, frozen if still else moving, StartCheck(START_TOLERANCE[dpo_image.training.precision])]
    tasks = Tasks(task("train"), task("val"))
    output = Output(POLICY, lambda folder: resnet.save(policy, architecture, folder))
    train_stage(policy, tasks, dpo_image.training, seed, output, hooks)


if __name__ == "__main__":
    main.run()
