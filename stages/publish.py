"""Publish the pipeline as one MLflow run: all parameters, all metrics, the curves of every training stage, the report.

This is what `mlflow ui` compares, beta against beta. It stands there also for experiments whose earlier stages came
from the cache, and for those that ran in a temporary folder.
"""

from pathlib import Path

from prefdag.artifacts import read_json
from prefdag.config import Params
from prefdag.publishing import publish
from prefdag.stage import stage

METRICS = {"text": Path("reports/text/metrics.json"), "image": Path("reports/image/metrics.json")}
CURVES = {
    "sft_ref": (Path("models/reference/history.csv"), Path("models/reference/validation.csv")),
    "resnet_warmup": (Path("models/resnet_reference/history.csv"), Path("models/resnet_reference/validation.csv")),
    "dpo_text": (Path("models/dpo_text/history.csv"), Path("models/dpo_text/validation.csv")),
    "dpo_image": (Path("models/dpo_image/history.csv"), Path("models/dpo_image/validation.csv")),
    "control_image": (Path("models/control_image/history.csv"), Path("models/control_image/validation.csv")),
}
REPORT = Path("reports/index.html")
MODEL_CARD = Path("reports/model_card.md")


@stage
def main(params: Params) -> None:
    """Read what the other stages wrote, and publish it."""
    metrics = {track: read_json(path) for track, path in METRICS.items()}
    publish(params, metrics, CURVES, files=[REPORT, MODEL_CARD, *METRICS.values()])


if __name__ == "__main__":
    main.run()
