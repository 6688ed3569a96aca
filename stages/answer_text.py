"""Generate the reference's and the policy's answers to held-out prompts, greedy and sampled, and compute their statistics."""

from pathlib import Path

from prefdag.config.answer_text import AnswerText
from prefdag.config.format_pairs import FormatPairs
from prefdag.runtime.artifacts import write_json, writing
from prefdag.runtime.stage import distributed_stage

PAIRS = Path("data/pairs")
REFERENCE = Path("models/reference")
POLICY = Path("models/dpo_text")
ANSWERS = Path("reports/text/answers.parquet")
STATISTICS = Path("reports/text/answers.json")


@distributed_stage
def main(format_pairs: FormatPairs, answer_text: AnswerText) -> None:
    import pandas as pd

    from prefdag.text.generation import answers
    from prefdag.text.generation.decoding import continuations
    from prefdag.text.scoring.rows import pair_rows, read_split
    from prefdag.text.sharded import load_both
    from prefdag.tokenizer.tokenizer import ChatTokenizer

    models = load_both(REFERENCE, POLICY, shard=answer_text.shard, packed=False)
    tokenizer = ChatTokenizer(REFERENCE, format_pairs.template, format_pairs.template_options)
    stop_ids = tokenizer.stop_ids
    test = read_split(PAIRS, "test")
    everything = pd.DataFrame({"id": test.ids, "prompt_ids": [list(map(int, pair.prompt)) for pair in pair_rows(test)]})
    # Several pairs can share a prompt, which is answered once.
    prompts = everything[~everything["prompt_ids"].map(tuple).duplicated()][: answer_text.prompts]
    ids = prompts["prompt_ids"].tolist()
    prompts = prompts.assign(prompt=[tokenizer.decode(each) for each in ids])

    parts = []
    for decoding, sampling in (("greedy", None), ("sampled", (answer_text.temperature, answer_text.top_p))):
        for name, model in models._asdict().items():
            generated = continuations(
                model,
                ids,
                max_new_tokens=answer_text.max_new_tokens,
                stop_ids=stop_ids,
                batch_size=answer_text.batch_size,
                name=f"{decoding}, {name}",
                sampling=sampling,
                # Both models sample with the same noise, so an unchanged policy gives the same answers, and noise cancels out.
                seeds=[[answer_text.seed, *key.encode()] for key in prompts["id"]],
            )
            texts = [tokenizer.decode(each[:-1] if each[-1] in stop_ids else each) for each in generated]
            parts.append(answers.rows(prompts.assign(decoding=decoding, model=name), texts, generated, stop_ids))
    table = pd.concat(parts, ignore_index=True)

    with writing(ANSWERS) as rows, writing(STATISTICS) as statistics:
        table.to_parquet(rows, index=False)
        write_json(statistics, answers.statistics(table))


if __name__ == "__main__":
    main.run()
