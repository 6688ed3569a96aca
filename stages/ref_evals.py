"""Compute log-probabilities of the eval sets under base model and reference, once for all betas, losses and seeds."""

from pathlib import Path

from prefdag.config.evaluate_text import EvaluateText
from prefdag.config.format_pairs import FormatPairs
from prefdag.runtime.artifacts import writing
from prefdag.runtime.stage import distributed_stage

PAIRS = Path("data/pairs")
FORMATTED = Path("reports/validation/formatted/summary.json")
EVALS = Path("data/raw/evals")
BASE = Path("models/base")
REFERENCE = Path("models/reference")
REF_EVALS = Path("data/ref_evals")


@distributed_stage
def main(format_pairs: FormatPairs, evaluate_text: EvaluateText) -> None:
    from prefdag.pairs import limits
    from prefdag.pairs.eval_sets import read_eval_sets
    from prefdag.text.evaluation import eval_logps
    from prefdag.text.scoring.rows import chosen_groups, read_split, with_chosen
    from prefdag.text.sharded import load_to_score
    from prefdag.tokenizer.files import positions
    from prefdag.tokenizer.tokenizer import ChatTokenizer

    tokenizer = ChatTokenizer(REFERENCE, format_pairs.template, format_pairs.template_options)
    questions = read_eval_sets(EVALS, evaluate_text.max_eval_rows)
    groups = eval_logps.groups_by_set(
        questions, tokenizer, limits.resolved(format_pairs, FORMATTED), positions(REFERENCE)
    )
    # Not the reference's: evaluate_text computes these per token, beside the policy.
    heldout = {eval_logps.HELDOUT: chosen_groups(with_chosen(read_split(PAIRS, "test")))}
    with writing(REF_EVALS) as folder:
        folder.mkdir()
        for role, model, sets in (("base", BASE, {**heldout, **groups}), ("reference", REFERENCE, groups)):
            scorer = load_to_score(model, shard=evaluate_text.shard)
            logps = eval_logps.compute_logps(scorer, sets, evaluate_text.tokens_per_batch, role)
            eval_logps.to_frame(logps).to_parquet(folder / f"{role}.parquet", index=False)


if __name__ == "__main__":
    main.run()
