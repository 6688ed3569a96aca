"""Build the report (one self-contained HTML page), its figures as files, and the model card; for DVC and MLflow also the main
metrics and all parameters.
"""

from pathlib import Path

from prefdag.config.params import Params
from prefdag.runtime.artifacts import read_json, sha256, write_json, writing
from prefdag.runtime.stage import stage
from prefdag.runtime.yaml import flatten

PAIRS = Path("data/pairs")
VALIDATED_PAIRS = Path("data/validated/pairs.parquet")
IMAGES = Path("data/validated/images")
IMAGE_PAIRS = Path("data/image_pairs")
REF_LOGPS_KEY = Path("data/ref_logps/key.json")
PAIRS_VALIDATION = Path("reports/validation/pairs")
FORMATTED = Path("reports/validation/formatted")
IMAGES_VALIDATION = Path("reports/validation/images")
REFERENCE = Path("models/reference")
POLICY = Path("models/policy")
CHOSEN = Path("reports/rounds/chosen.json")
ROUNDS = Path("reports/rounds/table.csv")
ROUND_PAIRS = [Path("data/rounds/1/pairs"), Path("data/rounds/2/pairs"), Path("data/rounds/3/pairs")]
RESNET_REFERENCE = Path("models/resnet_reference")
DPO_IMAGE = Path("models/dpo_image")
CONTROL_IMAGE = Path("models/control_image")
TEXT_HEALTH = Path("reports/text/health.json")
TEXT_METRICS = Path("reports/text/metrics.json")
HELDOUT_PAIRS = Path("reports/text/pairs.csv")
ANSWERS = Path("reports/text/answers.parquet")
STATISTICS = Path("reports/text/answers.json")
VERDICTS = Path("reports/text/verdicts.parquet")
WIN_RATE = Path("reports/text/win_rate.json")
TOKENS = Path("reports/text/tokens.parquet")
IMAGE_HEALTH = Path("reports/image/health.json")
IMAGE_METRICS = Path("reports/image/metrics.json")
PREDICTIONS = Path("reports/image/predictions.csv")
CLASSES = Path("reports/image/classes.csv")
CONFUSION = Path("reports/image/confusion.csv")
CALIBRATION = Path("reports/image/calibration.csv")
TEXT_REWARDS = Path("reports/text/reward_model.json")
IMAGE_REWARDS = Path("reports/image/reward_model.json")
PAGE = Path("reports/index.html")
CARD = Path("reports/model_card.md")
FIGURES = Path("reports/figures")
# All parameters by dotted key. publish reads them here: if they were its own parameters, dvc.lock would list all of them twice,
# and DVC reads and writes all of dvc.lock after every stage.
PARAMETERS = Path("reports/parameters.json")
MAIN_METRICS = Path("reports/metrics.json")
# The same bytes. DVC pushes only what it caches, and the run cache asks for the metrics, which are in Git, by their hash
# (docs/team.md).
CACHED_METRICS = Path("reports/cached_metrics.json")


@stage
def main(params: Params) -> None:
    from prefdag.report.page import card, figure_files, summary
    from prefdag.report.page import report_page as page
    from prefdag.report.page.results import Results, read_image, read_images_dataset, read_pairs_dataset, read_text
    from prefdag.report.text.answers import read_answers
    from prefdag.report.text.rounds import read_rounds

    key = read_json(REF_LOGPS_KEY)
    policy = read_json(CHOSEN)["model"]  # of which models/policy is a copy
    hashed = [
        (str(path), path) for path in (VALIDATED_PAIRS, IMAGES, IMAGE_PAIRS, RESNET_REFERENCE, DPO_IMAGE, CONTROL_IMAGE)
    ]
    hashed.insert(1, (policy, POLICY))
    results = Results(
        text=read_text(
            metrics=TEXT_METRICS,
            pairs=HELDOUT_PAIRS,
            answers=read_answers(rows=ANSWERS, statistics=STATISTICS, verdicts=VERDICTS, win_rate=WIN_RATE),
            tokens=TOKENS,
            rows=PAIRS / "test.parquet",
            messages=VALIDATED_PAIRS,
            sft=REFERENCE,
            dpo=POLICY,
            health=TEXT_HEALTH,
        ),
        image=read_image(
            metrics=IMAGE_METRICS,
            predictions=PREDICTIONS,
            by_class=CLASSES,
            confusion=CONFUSION,
            calibration=CALIBRATION,
            images=IMAGES,
            warmup=RESNET_REFERENCE,
            dpo=DPO_IMAGE,
            control=CONTROL_IMAGE,
            health=IMAGE_HEALTH,
        ),
        pairs=read_pairs_dataset(PAIRS, PAIRS_VALIDATION, FORMATTED),
        images=read_images_dataset(IMAGE_PAIRS, IMAGES_VALIDATION),
        # The reference is large; it was already hashed when its log-probabilities were computed.
        hashes={str(REFERENCE): key["reference_sha256"], **{name: sha256(path) for name, path in hashed}},
        ref_logps=key,
        rounds=read_rounds(ROUNDS, CHOSEN, ROUND_PAIRS),
        reward_models={"text": read_json(TEXT_REWARDS), "image": read_json(IMAGE_REWARDS)},
    )
    html = page.render(results, params)
    text, image = results.text, results.image
    findings = {"text": len(text.health.findings), "image": len(image.health.findings)}
    rows = results.rounds.table.to_dict("records") if results.rounds else []
    main_metrics = summary.main_metrics(
        text.metrics, text.answers.win_rate, image.metrics, findings, rows, results.reward_models
    )
    with (
        writing(PAGE) as path,
        writing(CARD) as card_path,
        writing(FIGURES) as figures,
        writing(PARAMETERS) as parameters,
        writing(MAIN_METRICS) as metrics,
        writing(CACHED_METRICS) as cached_metrics,
    ):
        write_json(parameters, flatten(params))
        write_json(metrics, main_metrics)
        write_json(cached_metrics, main_metrics)
        path.write_text(html, "utf-8")
        card_path.write_text(card.render(results, params), "utf-8")
        figures.mkdir()
        for name, document in figure_files.documents(html).items():
            (figures / name).write_text(document, "utf-8")


if __name__ == "__main__":
    main.run()
