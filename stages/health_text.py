"""Check the finished DPO run of the language model, and the rounds, if any; fail on a finding listed in health_text.fail_on."""

from pathlib import Path

from prefdag.config.dpo_text import DpoText
from prefdag.config.health import Health
from prefdag.runtime.stage import stage

HISTORY = Path("models/policy/history.csv")
VALIDATION = Path("models/policy/validation.csv")
CHOSEN = Path("reports/rounds/chosen.json")
ROUNDS = Path("reports/rounds/table.csv")
HEALTH = Path("reports/text/health.json")


@stage
def main(dpo_text: DpoText, health_text: Health) -> None:
    from prefdag.dpo.start import START_TOLERANCE
    from prefdag.health import rounds
    from prefdag.health.findings import examine
    from prefdag.health.verdict import joined, raise_if_fatal, to_json
    from prefdag.runtime.artifacts import read_csv, read_json, write_json, writing

    # A new prefix does not start at the reference, nor does a round that goes on from the policy before it.
    elsewhere = dpo_text.adapter.kind == "prefix" or not read_json(CHOSEN)["at_reference"]
    tolerance = None if elsewhere else START_TOLERANCE[dpo_text.training.precision]
    verdict = examine(read_csv(HISTORY), read_csv(VALIDATION), health_text, start_tolerance=tolerance)
    table = read_csv(ROUNDS)
    if len(table):
        verdict = joined(verdict, rounds.examine(table))
    raise_if_fatal(verdict, health_text, "params.yaml: health_text")
    with writing(HEALTH) as path:
        write_json(path, to_json(verdict))


if __name__ == "__main__":
    main.run()
