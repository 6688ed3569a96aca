"""Check the finished DPO run of the image classifier; fail on a finding listed in health_image.fail_on."""

from pathlib import Path

from prefdag.config.dpo_image import DpoImage
from prefdag.config.health import ImageHealth
from prefdag.runtime.stage import stage

HISTORY = Path("models/dpo_image/history.csv")
VALIDATION = Path("models/dpo_image/validation.csv")
HEALTH = Path("reports/image/health.json")


@stage
def main(dpo_image: DpoImage, health_image: ImageHealth) -> None:
    from prefdag.dpo.start import START_TOLERANCE
    from prefdag.health.findings import examine
    from prefdag.health.verdict import raise_if_fatal, to_json
    from prefdag.runtime.artifacts import read_csv, write_json, writing

    tolerance = START_TOLERANCE[dpo_image.training.precision]
    verdict = examine(read_csv(HISTORY), read_csv(VALIDATION), health_image, start_tolerance=tolerance)
    raise_if_fatal(verdict, health_image, "params.yaml: health_image")
    with writing(HEALTH) as path:
        write_json(path, to_json(verdict))


if __name__ == "__main__":
    main.run()
