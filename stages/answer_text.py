"""Generate the policy's answers to held-out prompts, greedy and sampled, beside those of reference and control."""

import logging
from pathlib import Path
from typing import Any

from prefdag.config.answer_text import AnswerText, EndpointSampler
from prefdag.config.format_pairs import FormatPairs
from prefdag.lifecycle.launcher import rank
from prefdag.runtime.artifacts import write_json, writing
from prefdag.runtime.stage import distributed_stage

log = logging.getLogger(__name__)

PAIRS = Path("data/pairs")
REF_ANSWERS = Path("data/ref_answers")
BASE = Path("models/base")
REFERENCE = Path("models/reference")
POLICY = Path("models/policy")
CONTROL = Path("models/control_text")
ANSWERS = Path("reports/text/answers.parquet")
STATISTICS = Path("reports/text/answers.json")


@distributed_stage
def main(format_pairs: FormatPairs, answer_text: AnswerText) -> None:
    from prefdag.distributed.process import process
    from prefdag.text.generation.answering import answered, heldout_prompts, joined, read_answers
    from prefdag.text.generation.answers import statistics
    from prefdag.text.generation.served import answered_by_server
    from prefdag.text.scoring.rows import read_split
    from prefdag.text.sharded import load_both
    from prefdag.tokenizer.tokenizer import ChatTokenizer

    tokenizer = ChatTokenizer(REFERENCE, format_pairs.template, format_pairs.template_options)
    test = read_split(PAIRS, "test")
    prompts = heldout_prompts(test, answer_text.prompts, tokenizer)
    described: dict[str, Any] = {}
    if isinstance(sampler := answer_text.sampler, EndpointSampler):
        process()  # it starts when every process calls this
        if rank() > 0:  # the first one asks for several answers at once by itself
            return
        if not (CONTROL / "off").exists():
            log.warning("%s: the server does not serve it, so it answers nothing", CONTROL)
        models = (REFERENCE, POLICY, BASE)
        table, described = answered_by_server(sampler, answer_text, prompts, models, test, tokenizer)
    else:
        others = read_answers(REF_ANSWERS, prompts, answer_text)
        policy = load_both(REFERENCE, POLICY, shard=answer_text.shard, packed=False).policy
        table = joined([others, answered(policy, "policy", prompts, answer_text, tokenizer)])

    with writing(ANSWERS) as rows_file, writing(STATISTICS) as statistics_file:
        table.to_parquet(rows_file, index=False)
        write_json(statistics_file, statistics(table) | described)


if __name__ == "__main__":
    main.run()
