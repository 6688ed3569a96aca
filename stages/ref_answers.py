"""Generate the answers of reference and control to held-out prompts, once for all policies."""

from pathlib import Path

from prefdag.config.answer_text import AnswerText, EndpointSampler
from prefdag.config.format_pairs import FormatPairs
from prefdag.lifecycle.launcher import rank
from prefdag.runtime.artifacts import writing
from prefdag.runtime.stage import distributed_stage

PAIRS = Path("data/pairs")
REFERENCE = Path("models/reference")
CONTROL = Path("models/control_text")
REF_ANSWERS = Path("data/ref_answers")


@distributed_stage
def main(format_pairs: FormatPairs, answer_text: AnswerText) -> None:
    if isinstance(answer_text.sampler, EndpointSampler):  # answer_text asks the server for the reference's, too
        if rank() == 0:
            with writing(REF_ANSWERS) as folder:
                folder.mkdir()
                (folder / "off").touch()
        return

    from prefdag.text.generation.answering import answered, heldout_prompts, joined, write_answers
    from prefdag.text.model import load
    from prefdag.text.scoring.rows import read_split
    from prefdag.text.sharded import load_both, load_sharded
    from prefdag.tokenizer.tokenizer import ChatTokenizer

    tokenizer = ChatTokenizer(REFERENCE, format_pairs.template, format_pairs.template_options)
    prompts = heldout_prompts(read_split(PAIRS, "test"), answer_text.prompts, tokenizer)
    if not (CONTROL / "off").exists():
        reference, control = load_both(REFERENCE, CONTROL, shard=answer_text.shard, packed=False)
        models = {"reference": reference, "control": control}
    elif answer_text.shard == "full":
        models = {"reference": load_sharded(REFERENCE, packed=False)}
    else:
        models = {"reference": load(REFERENCE, packed=False)}
    table = joined([answered(model, name, prompts, answer_text, tokenizer) for name, model in models.items()])
    with writing(REF_ANSWERS) as folder:
        folder.mkdir()
        write_answers(folder, table, answer_text)


if __name__ == "__main__":
    main.run()
