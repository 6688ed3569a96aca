"""Train the policy of the image classifier with DPO: the true class preferred to another, against the reference."""

from collections.abc import Sequence
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
    import torch

    from prefdag.dpo.dpo_session import train_dpo
    from prefdag.dpo.preference import Preference
    from prefdag.dpo.reference import MovingReference, StandsStill
    from prefdag.dpo.trainer import Outcome, Said, Task
    from prefdag.image import model as resnet
    from prefdag.image.classify import class_logps, correct, score_pairs, view
    from prefdag.image.data import Augmentation, load_splits
    from prefdag.image.negatives import negatives

    preference = Preference(loss, beta, loss_options, constraints)
    augment = Augmentation(dpo_image.max_shift, dpo_image.flip, seed)
    # Both in eval mode, the policy too: it then starts at the reference, whose batch statistics it keeps.
    policy, architecture = resnet.load(REFERENCE)
    reference = resnet.load(REFERENCE)[0].requires_grad_(False)
    splits = load_splits(IMAGES, PAIRS)
    seen = {name: splits[name] for name in ("train", "val")}
    y_l = negatives(dpo_image.negatives, seen, reference, architecture.classes, seed)

    def task(name: str) -> Task:
        split = seen[name]

        def score(model: torch.nn.Module, rows: Sequence[int], epoch: int | None) -> Said:
            images = view(split, rows, epoch, augment)
            logps = class_logps(model, images)
            with torch.no_grad():
                ref_logps = class_logps(reference, images)
            y_w = split.y_w[list(rows)]
            said = score_pairs(logps, ref_logps, y_w, y_l[name](rows, epoch))
            return {**said, "accuracy": correct(logps, y_w)}

        def loss_of(said: Said) -> Outcome:
            losses, metrics = preference(said)
            return losses, {**metrics, "accuracy": said["accuracy"]}

        return Task(score, loss_of, [1.0] * len(split), split.ids, preference.jointly)

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
