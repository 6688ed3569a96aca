"""Put validated pairs into a template, tokenise prompt and responses apart, and split them by prompt."""

import csv
from pathlib import Path

import pyarrow.parquet as pq

from prefdag.artifacts import write_json, writing
from prefdag.config import FormatPairs
from prefdag.data.chat import ChatTokenizer, check_window
from prefdag.data.inspection import Change
from prefdag.data.pairs import format_rows
from prefdag.stage import stage

PAIRS = Path("data/validated/pairs.parquet")
MODEL = Path("models/base")
OUT = Path("data/pairs")
REPORT = Path("reports/validation/formatted")


@stage
def main(format_pairs: FormatPairs) -> None:
    tokenizer = ChatTokenizer(MODEL, format_pairs.template)
    check_window(MODEL, format_pairs.max_prompt_tokens, format_pairs.max_response_tokens)
    formatted = format_rows(pq.read_table(PAIRS), tokenizer, format_pairs)
    with writing(OUT) as folder:
        folder.mkdir()
        for split, table in formatted.splits.items():
            pq.write_table(table, folder / f"{split}.parquet")
    with writing(REPORT) as folder:
        write_json(folder / "summary.json", formatted.summary)
        write_json(folder / "examples.json", formatted.examples)
        with (folder / "changes.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([Change._fields, *formatted.changes])


if __name__ == "__main__":
    main.run()
