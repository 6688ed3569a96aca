"""Train the reference classifier: a ResNet with cross-entropy, from pretrained weights if there are any."""

from pathlib import Path

from prefdag.config.resnet_warmup import ResnetWarmup
from prefdag.runtime.stage import distributed_stage

IMAGES = Path("data/validated/images")
PAIRS = Path("data/image_pairs")
BASE = Path("models/resnet_base")
REFERENCE = Path("models/resnet_reference")


@distributed_stage
def main(resnet_warmup: ResnetWarmup) -> None:
    import torch

    from prefdag.image import model as resnet
    from prefdag.image.classification_task import classification_task
    from prefdag.image.data import Augmentation, load_splits
    from prefdag.runtime.artifacts import read_json
    from prefdag.train.session import Output, train_stage
    from prefdag.train.task import Tasks

    config = resnet_warmup
    splits = load_splits(IMAGES, PAIRS)
    architecture = resnet.Architecture(
        arch=config.arch,
        stem=config.stem,
        dropout=config.dropout,
        channels=splits["train"].images.shape[1],
        classes=len(read_json(IMAGES / "classes.json")),
    )
    torch.manual_seed(config.seed)
    model = resnet.build(architecture).train()
    if read_json(BASE / "base.json")["arch"] is not None:
        resnet.warm_start(model, BASE / "model.safetensors")
    augment = Augmentation(config.max_shift, config.flip, config.seed)
    tasks = Tasks(*(classification_task(splits[name], augment) for name in ("train", "val")))
    output = Output(REFERENCE, lambda folder: resnet.save(model, architecture, folder))
    train_stage(model, tasks, config.training, config.seed, output)


if __name__ == "__main__":
    main.run()
