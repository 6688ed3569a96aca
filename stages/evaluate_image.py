"""Evaluate reference, policy and control on unseen test images: accuracies with intervals, in total and by class,
confusions, calibration, McNemar's test of the policy against the other two, rewards, KL."""

from contextlib import ExitStack
from pathlib import Path

from prefdag.config.loss import Loss
from prefdag.config.loss_options import LossOptions
from prefdag.runtime.artifacts import read_json, write_json, writing
from prefdag.runtime.stage import distributed_stage
from prefdag.runtime.types import Positive

IMAGES = Path("data/validated/images")
PAIRS = Path("data/image_pairs")
REFERENCE = Path("models/resnet_reference")
POLICY = Path("models/dpo_image")
CONTROL = Path("models/control_image")
HEALTH = Path("reports/image/health.json")
METRICS = Path("reports/image/metrics.json")
PREDICTIONS = Path("reports/image/predictions.csv")
CLASSES = Path("reports/image/classes.csv")
CONFUSION = Path("reports/image/confusion.csv")
CALIBRATION = Path("reports/image/calibration.csv")


@distributed_stage
def main(beta: Positive, loss: Loss, loss_options: LossOptions) -> None:
    from prefdag.dpo.preference import Preference
    from prefdag.health import verdict
    from prefdag.image import evaluate
    from prefdag.image.classify import predict
    from prefdag.image.data import load_splits
    from prefdag.image.model import load
    from stages.losses import LOSSES

    test = load_splits(IMAGES, PAIRS)["test"]
    classes = [str(name) for name in read_json(IMAGES / "classes.json")]
    models = {"reference": REFERENCE, "policy": POLICY, "control": CONTROL}
    logps = {name: predict(load(folder)[0], test.images) for name, folder in models.items()}
    predictions = evaluate.predictions(test, logps)
    metrics = evaluate.metrics(test, logps, Preference(loss, beta, loss_options, {}, LOSSES))
    metrics["health"] = verdict.metrics(verdict.read(HEALTH))
    tables = {
        PREDICTIONS: predictions,
        CLASSES: evaluate.by_class(predictions, classes),
        CONFUSION: evaluate.confusion(predictions, classes),
        CALIBRATION: evaluate.calibration(predictions),
    }
    with ExitStack() as written:
        for target, table in tables.items():
            table.to_csv(written.enter_context(writing(target)), index=False, lineterminator="\n")
        write_json(written.enter_context(writing(METRICS)), metrics)


if __name__ == "__main__":
    main.run()
