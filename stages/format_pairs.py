"""Put validated pairs into a template, tokenise prompt and responses separately, and split them by prompt."""

from pathlib import Path

from prefdag.config.format_pairs import FormatPairs
from prefdag.pairs import formatting
from prefdag.runtime.artifacts import write_json, writing
from prefdag.runtime.stage import stage
from prefdag.tokenizer.files import positions
from prefdag.tokenizer.tokenizer import ChatTokenizer

PAIRS = Path("data/validated/pairs.parquet")
MODEL = Path("models/base")
OUT = Path("data/pairs")
REPORT = Path("reports/validation/formatted")


@stage
def main(format_pairs: FormatPairs) -> None:
    tokenizer = ChatTokenizer(MODEL, format_pairs.template, format_pairs.template_options)
    with writing(REPORT) as report, writing(OUT) as folder:
        report.mkdir()
        folder.mkdir()
        formatted = formatting.format_pairs(
            PAIRS, folder, report / "changes.csv", tokenizer, format_pairs, positions(MODEL)
        )
        write_json(report / "summary.json", formatted.summary)
        write_json(report / "examples.json", formatted.examples)


if __name__ == "__main__":
    main.run()
