"""Evaluate the policy on held-out pairs and eval sets, beside base model and reference."""

from contextlib import ExitStack
from pathlib import Path

from prefdag.config.evaluate_text import EvaluateText
from prefdag.config.format_pairs import FormatPairs
from prefdag.config.loss import Loss
from prefdag.config.loss_options import LossOptions
from prefdag.runtime.artifacts import write_json, writing
from prefdag.runtime.stage import distributed_stage
from prefdag.runtime.types import Positive

PAIRS = Path("data/pairs")
FORMATTED = Path("reports/validation/formatted/summary.json")
EVALS = Path("data/raw/evals")
REF_EVALS = Path("data/ref_evals")
REFERENCE = Path("models/reference")
POLICY = Path("models/policy")
HEALTH = Path("reports/text/health.json")
METRICS = Path("reports/text/metrics.json")
CROSS_ENTROPY = Path("reports/text/cross_entropy.csv")
HELDOUT = Path("reports/text/pairs.csv")
ROWS = Path("reports/text/rows.parquet")
TOKENS = Path("reports/text/tokens.parquet")
CHOICES = Path("reports/text/choices.parquet")


@distributed_stage
def main(
    beta: Positive, loss: Loss, loss_options: LossOptions, format_pairs: FormatPairs, evaluate_text: EvaluateText
) -> None:
    import pandas as pd

    from prefdag.dpo.preference import Preference
    from prefdag.health import verdict
    from prefdag.pairs import limits
    from prefdag.pairs.eval_sets import cross_entropy_sets, read_eval_sets
    from prefdag.text.evaluation import choices, eval_logps
    from prefdag.text.evaluation import metrics as evaluate
    from prefdag.text.scoring.rows import chosen_groups, pair_rows, read_split, with_chosen
    from prefdag.text.sharded import load_both
    from prefdag.tokenizer.files import positions
    from prefdag.tokenizer.tokenizer import ChatTokenizer
    from stages.losses import LOSSES

    budget = evaluate_text.tokens_per_batch
    test = read_split(PAIRS, "test")
    taught = with_chosen(test)
    chosen = chosen_groups(taught)
    tokenizer = ChatTokenizer(REFERENCE, format_pairs.template, format_pairs.template_options)
    questions = read_eval_sets(EVALS, evaluate_text.max_eval_rows)
    groups = eval_logps.groups_by_set(
        questions, tokenizer, limits.resolved(format_pairs, FORMATTED), positions(REFERENCE)
    )
    base = eval_logps.read_logps(REF_EVALS / "base.parquet", {eval_logps.HELDOUT: chosen, **groups})
    reference = eval_logps.read_logps(REF_EVALS / "reference.parquet", groups)

    models = load_both(REFERENCE, POLICY, shard=evaluate_text.shard)
    pairs = pair_rows(test)
    heldout, kl, logratios, _ = evaluate.compare_heldout(models, pairs, budget)
    tokens = evaluate.tokens_table(test.ids, pairs, logratios, tokenizer)
    rewards = Preference(loss, beta, loss_options, {}, LOSSES).rewards(heldout)
    policy = eval_logps.compute_logps(models.policy, groups, budget, "policy")
    logps = {name: {"base": base[name], "reference": reference[name], "policy": policy[name]} for name in groups}

    of_chosen = evaluate.chosen_logps(heldout, base[eval_logps.HELDOUT])
    metrics = {"heldout": evaluate.heldout_metrics(heldout, rewards, test.preference, kl, of_chosen, chosen)}
    rows = [evaluate.rows_table("heldout", taught.ids, of_chosen, chosen)]
    for name, set_rows in cross_entropy_sets(questions).items():
        metrics[name] = evaluate.set_metrics(logps[name], groups[name])
        rows.append(evaluate.rows_table(name, [row.source for row in set_rows], logps[name], groups[name]))
    cross_entropies = evaluate.table(metrics)
    metrics["choices"], picked = {}, []
    for name, task in choices.TASKS.items():
        if name in questions:
            of_role = logps[eval_logps.choices_key(name)]
            tables = {role: task.table(questions[name], values) for role, values in of_role.items()}
            metrics["choices"][name] = {role: task.metrics(table) for role, table in tables.items()}
            picked += [table.assign(set=name, model=role) for role, table in tables.items()]
    table = evaluate.heldout_table(heldout, rewards).assign(id=test.ids)
    metrics["health"] = verdict.metrics(verdict.read(HEALTH))

    with ExitStack() as written:
        for target, frame in ((CROSS_ENTROPY, cross_entropies), (HELDOUT, table)):
            frame.to_csv(written.enter_context(writing(target)), index=False, lineterminator="\n")
        no_choices = pd.DataFrame(columns=["set", "model", "source"])
        for target, frame in ((ROWS, pd.concat(rows)), (TOKENS, tokens), (CHOICES, pd.concat([no_choices, *picked]))):
            frame.to_parquet(written.enter_context(writing(target)), index=False)
        write_json(written.enter_context(writing(METRICS)), metrics)


if __name__ == "__main__":
    main.run()
