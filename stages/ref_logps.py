"""Compute the log-probabilities of every pair under the reference, once for all betas, losses and seeds."""

from pathlib import Path

from prefdag.artifacts import write_json, writing
from prefdag.config import RefLogps
from prefdag.stage import stage

PAIRS = Path("data/pairs")
REFERENCE = Path("models/reference")
REF_LOGPS = Path("data/ref_logps")


@stage
def main(ref_logps: RefLogps) -> None:
    import pandas as pd

    from prefdag.text import model as lm
    from prefdag.text.logps import score_all_pairs
    from prefdag.text.rows import REF_COLUMNS, pair_rows, read_split, reference_key

    model = lm.load(REFERENCE, ref_logps.dtype)
    with writing(REF_LOGPS) as folder:
        folder.mkdir()
        for split in ("train", "val", "test"):
            frame = read_split(PAIRS, split)
            scores = score_all_pairs(model, pair_rows(frame), ref_logps.tokens_per_batch, split)
            logps = pd.DataFrame(
                {"id": frame["id"], **{f"{name}_logps": scores[name].double() for name in REF_COLUMNS}}
            )
            logps.to_parquet(folder / f"{split}.parquet", index=False)
        write_json(folder / "key.json", reference_key(PAIRS, REFERENCE, ref_logps.dtype))


if __name__ == "__main__":
    main.run()
