"""Compute the reference's log-probabilities of the pairs that DPO reads, once for all betas, losses and seeds."""

from pathlib import Path

from prefdag.config.ref_logps import RefLogps
from prefdag.runtime.artifacts import count_rows, write_json, writing
from prefdag.runtime.stage import distributed_stage

PAIRS = Path("data/pairs")
REFERENCE = Path("models/reference")
REF_LOGPS = Path("data/ref_logps")


@distributed_stage
def main(ref_logps: RefLogps) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from prefdag.text.scoring.logps import all_pair_logps
    from prefdag.text.scoring.rows import REF_COLUMNS, pair_rows, parts_of, ref_columns, reference_key
    from prefdag.text.sharded import load_to_score

    schema = pa.schema({"id": pa.string(), **dict.fromkeys(REF_COLUMNS, pa.float64())})
    model = load_to_score(REFERENCE, ref_logps.dtype, shard=ref_logps.shard)
    with writing(REF_LOGPS) as folder:
        folder.mkdir()
        for split in ("train", "val"):  # evaluate_text scores the others, per token
            total, done = count_rows(PAIRS / f"{split}.parquet"), 0
            with pq.ParquetWriter(folder / f"{split}.parquet", schema) as writer:
                for part in parts_of(PAIRS, split):
                    logps = all_pair_logps(
                        model, pair_rows(part), ref_logps.tokens_per_batch, split, done=done, total=total
                    )
                    columns = {name: values.double().numpy() for name, values in ref_columns(logps).items()}
                    writer.write_table(pa.table({"id": part.ids, **columns}, schema))
                    done += len(part)
        write_json(folder / "key.json", reference_key(PAIRS, REFERENCE, ref_logps.dtype))


if __name__ == "__main__":
    main.run()
