"""Compute the log-probabilities of every pair under the reference, once for all betas, losses and seeds."""

from pathlib import Path

from prefdag.config.ref_logps import RefLogps
from prefdag.runtime.artifacts import write_json, writing
from prefdag.stage import stage

PAIRS = Path("data/pairs")
REFERENCE = Path("models/reference")
REF_LOGPS = Path("data/ref_logps")


@stage
def main(ref_logps: RefLogps) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from prefdag.text import model as lm
    from prefdag.text.scoring.logps import score_all_pairs
    from prefdag.text.scoring.rows import REF_COLUMNS, pair_rows, parts_of, reference_key

    schema = pa.schema({"id": pa.string(), **{f"{name}_logps": pa.float64() for name in REF_COLUMNS}})
    model = lm.load(REFERENCE, ref_logps.dtype)
    with writing(REF_LOGPS) as folder:
        folder.mkdir()
        for split in ("train", "val", "test"):
            total, done = pq.read_metadata(PAIRS / f"{split}.parquet").num_rows, 0
            with pq.ParquetWriter(folder / f"{split}.parquet", schema) as writer:
                for frame in parts_of(PAIRS, split):
                    scores = score_all_pairs(
                        model, pair_rows(frame), ref_logps.tokens_per_batch, split, done=done, total=total
                    )
                    logps = {f"{name}_logps": scores[name].double().numpy() for name in REF_COLUMNS}
                    writer.write_table(pa.table({"id": frame["id"], **logps}, schema))
                    done += len(frame)
        write_json(folder / "key.json", reference_key(PAIRS, REFERENCE, ref_logps.dtype))


if __name__ == "__main__":
    main.run()
