"""Train the policy of the image classifier with DPO: the true class preferred to another, against the reference."""

from pathlib import Path

from prefdag.config import Constraints, DpoImage, Loss, LossOptions
from prefdag.stage import stage

IMAGES = Path("data/validated/images")
PAIRS = Path("data/image_pairs")
REFERENCE = Path("models/resnet_reference")
POLICY = Path("models/dpo_image")


@stage
def main(
    beta: float,
    loss: Loss,
    seed: int,
    loss_options: LossOptions,
    constraints: Constraints,
    dpo_image: DpoImage,
) -> None:
    from prefdag.dpo.dpo_session import train_dpo
    from prefdag.dpo.passes import Task
    from prefdag.dpo.preference import Preference
    from prefdag.dpo.reference import MovingReference, StandsStill
    from prefdag.image import model as resnet
    from prefdag.image.classify import comparison, reference_logps
    from prefdag.image.data import Augmentation, load_splits
    from prefdag.image.negatives import negatives

    preference = Preference(loss, beta, loss_options, constraints)
    augment = {"train": Augmentation(dpo_image.max_shift, dpo_image.flip, seed), "val": Augmentation(0, False, seed)}
    # Both in eval mode, the policy too: it then starts at the reference, whose batch statistics it keeps.
    policy, architecture = resnet.load(REFERENCE)
    reference = resnet.load(REFERENCE)[0].requires_grad_(False)
    splits = load_splits(IMAGES, PAIRS)
    seen = {name: splits[name] for name in ("train", "val")}
    y_l = negatives(dpo_image.negatives, seen, reference, architecture.classes, seed)

    def task(name: str) -> Task:
        ref_logps = reference_logps(reference, seen[name].images, augment[name], dpo_image)
        return comparison(seen[name], augment[name], y_l[name], ref_logps, preference, jointly=preference.jointly)

    still = StandsStill([*reference.parameters(), *reference.buffers()], policy.buffers())
    moving = MovingReference(
        reference, lambda: dict(policy.named_parameters()) | dict(policy.named_buffers()), dpo_image.reference
    )
    train_dpo(
        "dpo_image",
        {
            "beta": beta,
            "loss": loss,
            "seed": seed,
            "loss_options": loss_options,
            "constraints": constraints,
            "dpo_image": dpo_image,
        },
        policy,
        task("train"),
        task("val"),
        dpo_image,
        seed,
        POLICY,
        lambda folder: resnet.save(policy, architecture, folder),
        preference,
        [still if dpo_image.reference.update == "none" else moving],
    )


if __name__ == "__main__":
    main.run()
