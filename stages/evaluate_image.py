"""Evaluate reference, policy and control on test images that none of them saw: accuracies with intervals, rewards, KL."""

from pathlib import Path

from prefdag.artifacts import write_json, writing
from prefdag.config import Loss, LossOptions
from prefdag.stage import stage

IMAGES = Path("data/validated/images")
PAIRS = Path("data/image_pairs")
REFERENCE = Path("models/resnet_reference")
POLICY = Path("models/dpo_image")
CONTROL = Path("models/control_image")
METRICS = Path("reports/image/metrics.json")
PREDICTIONS = Path("reports/image/predictions.csv")


@stage
def main(beta: float, loss: Loss, loss_options: LossOptions) -> None:
    from prefdag.dpo import health
    from prefdag.dpo.preference import Preference
    from prefdag.image import evaluate
    from prefdag.image.classify import predict
    from prefdag.image.data import load_splits
    from prefdag.image.model import load

    test = load_splits(IMAGES, PAIRS)["test"]
    models = {"reference": REFERENCE, "policy": POLICY, "control": CONTROL}
    logps = {name: predict(load(folder)[0], test.images) for name, folder in models.items()}
    with writing(PREDICTIONS) as path:
        evaluate.predictions(test, logps).to_csv(path, index=False, lineterminator="\n")
    metrics = evaluate.metrics(test, logps, Preference(loss, beta, loss_options, {}))
    metrics["health"] = health.metrics(health.read(POLICY / "health.json"))
    with writing(METRICS) as path:
        write_json(path, metrics)


if __name__ == "__main__":
    main.run()
