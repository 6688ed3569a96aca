"""Publish the pipeline as one MLflow run: parameters, metrics, the curves of every training stage, and the report with its
figures and tables.

`mlflow ui` compares these runs, for example by beta. Experiments are published even if their earlier stages came from the
cache, or if they ran in a temporary folder.
"""

import logging
from datetime import UTC, datetime
from pathlib import Path

from prefdag.lifecycle.errors import PrefdagError
from prefdag.runtime.artifacts import read_json, writing
from prefdag.runtime.stage import stage
from prefdag.tracking.durations import durations
from prefdag.tracking.publishing import numbers, publish
from prefdag.tracking.runs import pipelines, revision

log = logging.getLogger(__name__)

PARAMETERS = Path("reports/parameters.json")
MAIN_METRICS = Path("reports/metrics.json")
METRICS = {
    "text": Path("reports/text/metrics.json"),
    "answers": Path("reports/text/answers.json"),
    "win_rate": Path("reports/text/win_rate.json"),
    "image": Path("reports/image/metrics.json"),
}
# Of reward models; null if params.yaml says so.
REWARD_MODELS = {
    "reward_model": Path("reports/text/reward_model.json"),
    "reward_model_image": Path("reports/image/reward_model.json"),
}
REWARD_MODEL = Path("models/reward_model")
CURVES = {
    "sft_ref": (Path("models/reference/history.csv"), Path("models/reference/validation.csv")),
    "resnet_warmup": (Path("models/resnet_reference/history.csv"), Path("models/resnet_reference/validation.csv")),
    "dpo_text": (Path("models/dpo_text/history.csv"), Path("models/dpo_text/validation.csv")),
    "dpo_image": (Path("models/dpo_image/history.csv"), Path("models/dpo_image/validation.csv")),
    "control_text": (Path("models/control_text/history.csv"), Path("models/control_text/validation.csv")),
    "control_image": (Path("models/control_image/history.csv"), Path("models/control_image/validation.csv")),
}
ROUND_POLICIES = [Path("models/rounds/1"), Path("models/rounds/2"), Path("models/rounds/3")]
ROUNDS = Path("reports/rounds/table.csv")
REPORT = Path("reports/index.html")
MODEL_CARD = Path("reports/model_card.md")
FIGURES = Path("reports/figures")
TABLES = [
    ROUNDS,
    Path("reports/text/cross_entropy.csv"),
    Path("reports/text/pairs.csv"),
    Path("reports/text/rows.parquet"),
    Path("reports/text/choices.parquet"),
    Path("reports/image/predictions.csv"),
    Path("reports/image/classes.csv"),
    Path("reports/image/confusion.csv"),
    Path("reports/image/calibration.csv"),
]
# This file always has the same bytes, and dvc.yaml neither caches nor restores it. So DVC publishes wherever it is missing, as
# in a fresh clone or the folder of a queued experiment, even if every other stage comes from the cache.
PUBLISHED = Path("reports/published.txt")


@stage
def main() -> None:
    """Publish the outputs of the other stages."""
    from prefdag.report import run_details
    from prefdag.report.compare import frontier

    parameters = read_json(PARAMETERS)
    metrics = {track: read_json(path) for track, path in METRICS.items()}
    reward_models = {name: figures for name, path in REWARD_MODELS.items() if (figures := read_json(path))}
    this = f"beta={parameters['beta']}", parameters, numbers(metrics)
    try:
        experiments = frontier.points([this, *pipelines()])
    except PrefdagError as error:
        log.warning("%s", error)
        experiments = None
    seconds = {name: value for name, value in durations().items() if name != main.name}
    page = REPORT.with_name("published.html")  # not an output in DVC, since it depends on the time; it goes to MLflow
    with writing(page) as path:
        moment = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        html = run_details.fill(REPORT.read_text("utf-8"), seconds, revision(), moment, experiments)
        path.write_text(html, "utf-8")
    files = [page, MODEL_CARD, MAIN_METRICS, *METRICS.values(), *TABLES, *sorted(FIGURES.iterdir())]
    files += [REWARD_MODELS[name] for name in reward_models]
    rounds = {f"dpo_round@{number}": folder for number, folder in enumerate(ROUND_POLICIES, 1)}
    trained = CURVES | {
        name: (folder / "history.csv", folder / "validation.csv")
        for name, folder in (rounds | {"reward_model": REWARD_MODEL}).items()
    }
    curves = {name: files for name, files in trained.items() if files[0].exists()}  # the others are off
    main_metrics = {track: values for track, values in read_json(MAIN_METRICS).items() if track != "rounds"}
    publish(
        parameters, metrics | reward_models, curves, files, main_metrics=main_metrics, rounds=ROUNDS, seconds=seconds
    )
    with writing(PUBLISHED) as path:
        path.write_text("This pipeline is a run in MLflow with the tag kind=pipeline; see docs/tracking.md.\n", "utf-8")


if __name__ == "__main__":
    main.run()
