"""Select the policy, that of the last good round, or of dpo_text, and write the table of rounds."""

from pathlib import Path

from prefdag.runtime.artifacts import write_json, writing
from prefdag.runtime.stage import stage

RESULTS = [Path("reports/rounds/1.json"), Path("reports/rounds/2.json"), Path("reports/rounds/3.json")]
POLICIES = [Path("models/dpo_text"), Path("models/rounds/1"), Path("models/rounds/2"), Path("models/rounds/3")]
POLICY = Path("models/policy")
CHOSEN = Path("reports/rounds/chosen.json")
TABLE = Path("reports/rounds/table.csv")


@stage
def main() -> None:
    from prefdag.recorded import recorded
    from prefdag.rounds import table
    from prefdag.rounds.selection import copy_model, described
    from prefdag.runtime.artifacts import read_json

    results = {number: read_json(path) for number, path in enumerate(RESULTS, 1)}
    chosen = described(results)
    with writing(POLICY) as folder, writing(CHOSEN) as path, writing(TABLE) as table_path:
        copy_model(recorded(POLICIES[chosen["round"]]), folder)
        write_json(path, chosen | {"model": str(POLICIES[chosen["round"]])})
        table.write(table_path, table.rows(results, chosen["round"]))


if __name__ == "__main__":
    main.run()
