"""Read the raw preference pairs into one schema, and let only those through that pass every expectation."""

from pathlib import Path

from prefdag.artifacts import scratch, writing
from prefdag.config import ValidatePairs
from prefdag.data.schema import read_pairs, write_pairs
from prefdag.stage import stage

RAW = Path("data/raw/pairs")
PAIRS = Path("data/validated/pairs.parquet")
REPORT = Path("reports/validation/pairs")


@stage
def main(validate_pairs: ValidatePairs) -> None:
    from prefdag.data.checks import check, refuse  # seconds of import, not for --help
    from prefdag.data.pair_expectations import pairs_table

    pairs = read_pairs(RAW, validate_pairs.format)
    with writing(REPORT) as report, writing(PAIRS) as parquet:
        offending = check([pairs_table(pairs, validate_pairs.levels, validate_pairs.similarity)], report)
        bad = pairs["source"].isin(offending["source"][offending["level"] == "drop"])
        too_many = bad.mean() > validate_pairs.max_dropped
        if (offending["level"] == "error").any() or too_many:
            why = f"; {bad.sum()} of {len(bad)} rows exceed validate_pairs.max_dropped" if too_many else ""
            raise refuse(offending, report, scratch("validation", "pairs"), why)
        write_pairs(parquet, pairs[~bad])
    print(f"validate_pairs: {len(pairs)} rows read, {bad.sum()} dropped, {(~bad).sum()} written to {PAIRS}")


if __name__ == "__main__":
    main.run()
