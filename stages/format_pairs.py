"""Put validated pairs into a template, tokenise prompt and responses apart, and split them by prompt."""

from pathlib import Path

import pyarrow.parquet as pq

from prefdag.artifacts import write_json, writing
from prefdag.config import FormatPairs
from prefdag.data.chat import ChatTokenizer
from prefdag.data.pairs import format_rows
from prefdag.stage import stage

PAIRS = Path("data/validated/pairs.parquet")
MODEL = Path("models/base")
OUT = Path("data/pairs")


@stage
def main(format_pairs: FormatPairs) -> None:
    tokenizer = ChatTokenizer(MODEL, format_pairs.template)
    tables, summary = format_rows(pq.read_table(PAIRS), tokenizer, format_pairs)
    with writing(OUT) as folder:
        folder.mkdir()
        for split, table in tables.items():
            pq.write_table(table, folder / f"{split}.parquet")
        write_json(folder / "summary.json", summary)


if __name__ == "__main__":
    main.run()
