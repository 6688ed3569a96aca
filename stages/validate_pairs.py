"""Read the raw preference pairs into one schema, and let only those through that pass every expectation."""

from pathlib import Path

from prefdag.config.validate_pairs import ValidatePairs
from prefdag.gate.contamination import contamination
from prefdag.pairs.eval_sets import read_eval_sets
from prefdag.pairs.schema import read_pairs, write_pairs
from prefdag.runtime.artifacts import scratch, write_json, writing
from prefdag.stage import stage

RAW = Path("data/raw/pairs")
EVALS = Path("data/raw/evals")
PAIRS = Path("data/validated/pairs.parquet")
REPORT = Path("reports/validation/pairs")


@stage
def main(validate_pairs: ValidatePairs) -> None:
    # Seconds of import, not for --help.
    from prefdag.gate.checks import check, refuse
    from prefdag.gate.measures import measures, summary
    from prefdag.gate.pair_expectations import pairs_table, shares_table
    from prefdag.pairs.annotators import agreed

    read = read_pairs(RAW, validate_pairs.format)
    pairs, merged = agreed(read)
    sets = read_eval_sets(EVALS)
    meetings = contamination(pairs, sets)
    measured = measures(pairs[pairs["fault"].isna()])
    tables = [
        pairs_table(pairs, meetings, validate_pairs.levels, validate_pairs.similarity),
        shares_table(measured, validate_pairs.shares),
    ]
    with writing(REPORT) as report, writing(PAIRS) as parquet:
        offending = check(tables, report)
        bad = pairs["source"].isin(offending["source"][offending["level"] == "drop"])
        for name, frame in (("contamination", meetings), ("shares", measured), ("merged", merged)):
            frame.to_csv(report / f"{name}.csv", index=False, lineterminator="\n")
        write_json(report / "summary.json", summary(pairs, bad, merged, meetings, sets))
        too_many = bad.mean() > validate_pairs.max_dropped
        if (offending["level"] == "error").any() or too_many:
            why = f"; {bad.sum()} of {len(bad)} rows exceed validate_pairs.max_dropped" if too_many else ""
            raise refuse(offending, report, scratch("validation", "pairs"), why)
        write_pairs(parquet, pairs[~bad])
    joined = f", {len(merged)} joined to others of their pair" if len(merged) else ""
    print(f"validate_pairs: {len(read)} rows read{joined}, {bad.sum()} dropped, {(~bad).sum()} written to {PAIRS}")


if __name__ == "__main__":
    main.run()
