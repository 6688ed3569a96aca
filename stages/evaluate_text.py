"""Evaluate base, reference and policy on held-out pairs and eval sets."""

from pathlib import Path

from prefdag.artifacts import write_json, writing
from prefdag.config import EvaluateText, FormatPairs, Loss, LossOptions
from prefdag.stage import stage

PAIRS = Path("data/pairs")
EVALS = Path("data/raw/evals")
BASE = Path("models/base")
REFERENCE = Path("models/reference")
POLICY = Path("models/dpo_text")
METRICS = Path("reports/text/metrics.json")
CROSS_ENTROPY = Path("reports/text/cross_entropy.csv")
HELDOUT = Path("reports/text/pairs.csv")
ROWS = Path("reports/text/rows.parquet")
TOKENS = Path("reports/text/tokens.parquet")
CHOICES = Path("reports/text/choices.parquet")


@stage
def main(
    beta: float, loss: Loss, loss_options: LossOptions, format_pairs: FormatPairs, evaluate_text: EvaluateText
) -> None:
    import pandas as pd

    from prefdag.data.chat import ChatTokenizer, positions
    from prefdag.data.evals import read_eval_sets, spoken
    from prefdag.dpo import health
    from prefdag.dpo.preference import Preference
    from prefdag.text import choices, evaluate
    from prefdag.text import model as lm
    from prefdag.text.eval_rows import eval_groups
    from prefdag.text.logps import score
    from prefdag.text.rows import chosen_groups, pair_rows, read_split

    budget = evaluate_text.tokens_per_batch
    test = read_split(PAIRS, "test")
    tokenizer = ChatTokenizer(REFERENCE, format_pairs.template)
    questions = {name: rows[: evaluate_text.max_eval_rows] for name, rows in read_eval_sets(EVALS).items()}
    texts = spoken(questions)
    sources = {name: [row.source for row in rows] for name, rows in texts.items()}
    sets = {name: eval_groups(rows, tokenizer, format_pairs) for name, rows in texts.items()}
    tasks = {name: task for name, task in choices.TASKS.items() if name in questions}
    asked = {name: task.groups(questions[name], tokenizer, positions(BASE)) for name, task in tasks.items()}

    models = lm.load_models(REFERENCE, POLICY)
    pairs = pair_rows(test)
    heldout, kl, logratios = evaluate.score_heldout(models, pairs, budget)
    tokens = evaluate.tokens_table(test["id"], pairs, logratios, tokenizer)
    rewards = Preference(loss, beta, loss_options, {}).rewards(heldout)
    logps = {name: evaluate.score_models(models, groups, budget, name) for name, groups in sets.items()}
    said_of = {
        name: evaluate.score_models(models, groups, budget, f"{name}, choices") for name, groups in asked.items()
    }
    del models

    base = lm.load(BASE)
    chosen = chosen_groups(test)
    said = evaluate.chosen_logps(heldout, score(base, chosen, budget, "heldout, base"))
    metrics = {"heldout": evaluate.heldout_metrics(heldout, rewards, test["preference"].to_numpy(), kl, said, chosen)}
    rows = [evaluate.rows_table("heldout", test["id"][test["chosen_ids"].map(len) > 0], said, chosen)]
    for name, groups in sets.items():
        scores = {"base": score(base, groups, budget, f"{name}, base"), **logps[name]}
        metrics[name] = evaluate.set_metrics(scores, groups)
        rows.append(evaluate.rows_table(name, sources[name], scores, groups))
    cross_entropies = evaluate.table(metrics)
    metrics["choices"], picked = {}, []
    for name, task in tasks.items():
        logps_of = {"base": score(base, asked[name], budget, f"{name}, choices, base"), **said_of[name]}
        tables = {model: task.table(questions[name], values) for model, values in logps_of.items()}
        metrics["choices"][name] = {model: task.metrics(table) for model, table in tables.items()}
        picked += [table.assign(set=name, model=model) for model, table in tables.items()]
    table = evaluate.heldout_table(heldout, rewards).assign(id=test["id"])
    metrics["health"] = health.metrics(health.read(POLICY / "health.json"))

    for path, frame in ((CROSS_ENTROPY, cross_entropies), (HELDOUT, table)):
        with writing(path) as temporary:
            frame.to_csv(temporary, index=False, lineterminator="\n")
    with writing(ROWS) as temporary:
        pd.concat(rows).to_parquet(temporary, index=False)
    with writing(TOKENS) as temporary:
        tokens.to_parquet(temporary, index=False)
    with writing(CHOICES) as temporary:
        pd.concat([pd.DataFrame(columns=["set", "model", "source"]), *picked]).to_parquet(temporary, index=False)
    with writing(METRICS) as temporary:
        write_json(temporary, metrics)


if __name__ == "__main__":
    main.run()
