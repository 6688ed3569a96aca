"""Check the finished DPO run of the language model; fail on a finding listed in health_text.fail_on."""

from pathlib import Path

from prefdag.config.dpo_text import DpoText
from prefdag.config.health import Health
from prefdag.runtime.stage import stage

HISTORY = Path("models/dpo_text/history.csv")
VALIDATION = Path("models/dpo_text/validation.csv")
HEALTH = Path("reports/text/health.json")


@stage
def main(dpo_text: DpoText, health_text: Health) -> None:
    from prefdag.dpo.start import START_TOLERANCE
    from prefdag.health.findings import examine
    from prefdag.health.verdict import raise_if_fatal, to_json
    from prefdag.runtime.artifacts import read_csv, write_json, writing

    # A new prefix does not start at the reference.
    tolerance = None if dpo_text.adapter.kind == "prefix" else START_TOLERANCE[dpo_text.training.precision]
    verdict = examine(read_csv(HISTORY), read_csv(VALIDATION), health_text, start_tolerance=tolerance)
    raise_if_fatal(verdict, health_text, "params.yaml: health_text")
    with writing(HEALTH) as path:
        write_json(path, to_json(verdict))


if __name__ == "__main__":
    main.run()
