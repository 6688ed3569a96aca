"""Read the raw preference pairs into one schema, check them, and write those that pass."""

from pathlib import Path

from prefdag.config.validate_pairs import ValidatePairs
from prefdag.gate.contamination import find_overlaps
from prefdag.pairs.eval_sets import ignored_columns as set_ignored
from prefdag.pairs.eval_sets import read_eval_sets
from prefdag.pairs.schema import ignored_columns, read_pairs, repeat_prompt, write_pairs
from prefdag.runtime.artifacts import scratch, write_json, writing
from prefdag.runtime.stage import stage

RAW = Path("data/raw/pairs")
EVALS = Path("data/raw/evals")
PAIRS = Path("data/validated/pairs.parquet")
REPORT = Path("reports/validation/pairs")


@stage
def main(validate_pairs: ValidatePairs) -> None:
    # These imports take seconds, which --help should not.
    from prefdag.gate.checks import check, refuse
    from prefdag.gate.measures import measure_shares
    from prefdag.gate.pair_expectations import pairs_table, shares_table
    from prefdag.gate.summary import summary
    from prefdag.pairs.annotators import merge_annotators

    read = read_pairs(
        RAW, validate_pairs.format, columns=validate_pairs.columns, score_scale=validate_pairs.score_scale
    )
    pairs, merged = merge_annotators(read)
    sets = read_eval_sets(EVALS)
    tell_ignored("pairs", ignored_columns(read))
    for name, rows in sets.items():
        tell_ignored(name, set_ignored(rows))
    if repeated := repeat_prompt(read):
        print(
            f"validate_pairs: in {repeated:,} of {len(read):,} rows both responses begin with the prompt, so it would be "
            "trained twice; remove it from them unless they quote it"
        )
    overlaps = find_overlaps(pairs, sets)
    shares = measure_shares(pairs[pairs["fault"].isna()])
    tables = [
        pairs_table(pairs, overlaps, validate_pairs.levels, validate_pairs.similarity),
        shares_table(shares, validate_pairs.shares),
    ]
    with writing(REPORT) as report, writing(PAIRS) as parquet:
        offending = check(tables, report)
        bad = pairs["source"].isin(offending["source"][offending["level"] == "drop"])
        for name, frame in (("contamination", overlaps), ("shares", shares), ("merged", merged)):
            frame.to_csv(report / f"{name}.csv", index=False, lineterminator="\n")
        write_json(report / "summary.json", summary(pairs, bad, merged, overlaps, sets))
        too_many = bad.mean() > validate_pairs.max_dropped
        if (offending["level"] == "error").any() or too_many:
            why = f"; {bad.sum()} of {len(bad)} rows exceed validate_pairs.max_dropped" if too_many else ""
            raise refuse(offending, report, scratch("validation", "pairs"), why)
        write_pairs(parquet, pairs[~bad])
    joined = f", {len(merged)} merged into other rows of the same pair" if len(merged) else ""
    formats = " and ".join(read["format"].unique())
    print(
        f"validate_pairs: {len(read)} rows read as {formats}{joined}, {bad.sum()} dropped, {(~bad).sum()} written to {PAIRS}"
    )


def tell_ignored(name: str, columns: dict[str, int]) -> None:
    """Print the columns that are not read, with the number of rows of each."""
    counts = ", ".join(f"{column} ({rows:,} {'row' if rows == 1 else 'rows'})" for column, rows in columns.items())
    if counts:
        print(f"validate_pairs: columns of {name} that are not read: {counts}")


if __name__ == "__main__":
    main.run()
