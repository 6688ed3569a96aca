"""Generate the answers of reference, policy and control to held-out prompts, greedy and sampled, and their statistics."""

from pathlib import Path

from prefdag.config.answer_text import AnswerText
from prefdag.config.format_pairs import FormatPairs
from prefdag.runtime.artifacts import write_json, writing
from prefdag.runtime.stage import distributed_stage

PAIRS = Path("data/pairs")
BASE = Path("models/base")
REFERENCE = Path("models/reference")
POLICY = Path("models/policy")
CONTROL = Path("models/control_text")
ANSWERS = Path("reports/text/answers.parquet")
STATISTICS = Path("reports/text/answers.json")


@distributed_stage
def main(format_pairs: FormatPairs, answer_text: AnswerText) -> None:
    import pandas as pd

    from prefdag.text.generation.answering import answered
    from prefdag.text.generation.answers import statistics
    from prefdag.text.scoring.rows import pair_rows, read_split
    from prefdag.tokenizer.tokenizer import ChatTokenizer

    tokenizer = ChatTokenizer(REFERENCE, format_pairs.template, format_pairs.template_options)
    test = read_split(PAIRS, "test")
    everything = pd.DataFrame({"id": test.ids, "prompt_ids": [list(map(int, pair.prompt)) for pair in pair_rows(test)]})
    # Several pairs can share a prompt, which is answered once.
    prompts = everything[~everything["prompt_ids"].map(tuple).duplicated()][: answer_text.prompts]
    prompts = prompts.assign(prompt=[tokenizer.decode(ids) for ids in prompts["prompt_ids"]])
    folders = {"reference": REFERENCE, "policy": POLICY}
    if not (CONTROL / "off").exists():
        folders["control"] = CONTROL
    found = answered(answer_text, prompts, folders, BASE, test, tokenizer)
    if found is None:  # the first process does the rest
        return
    table, described = found

    with writing(ANSWERS) as rows_file, writing(STATISTICS) as statistics_file:
        table.to_parquet(rows_file, index=False)
        write_json(statistics_file, statistics(table) | described)


if __name__ == "__main__":
    main.run()
