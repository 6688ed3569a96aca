"""How long the arithmetic of a finished run's stages takes at the rate of matrix products, against how long they took.

    python -m benchmarks.roofline FOLDER

FOLDER is a clone of the project in which `dvc repro` has run on this machine, without rounds. The stages that train, score or
sample with the language model are counted, in a prompt once for all its responses, and in a pair or a row as often as a pass
needs it. Prints a table in Markdown.
"""

import argparse
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.arithmetic import Model
from benchmarks.harness import end_in_one_line, rounded
from prefdag.check_params import load_params
from prefdag.config.training import Training
from prefdag.lifecycle.errors import DataError
from prefdag.pairs import limits
from prefdag.pairs.eval_sets import read_eval_sets
from prefdag.runtime.artifacts import read_json, read_table
from prefdag.text.evaluation.eval_logps import groups_by_set
from prefdag.text.scoring.rows import chosen_groups, pair_rows, read_split, with_chosen
from prefdag.tokenizer.files import positions
from prefdag.tokenizer.tokenizer import ChatTokenizer
from prefdag.tracking.durations import durations
from stages import answer_text, evaluate_text

FORWARD, BACKWARD = 2, 2  # multiplications and additions a weight and token: a pass, and its activations' gradient
Lengths = tuple[int, Sequence[int]]  # of a prompt, and of its responses


def model_of(folder: Path) -> Model:
    """The sizes of a Llama. Raises `DataError` if the model is another one, whose layers are not known here."""
    config = read_json(folder / "config.json")
    if config["model_type"] != "llama":
        raise DataError(f"{folder}: its model_type is {config['model_type']}, and the arithmetic is that of a llama")
    return Model.llama(config)


def stages(model: Model) -> dict[str, float]:
    """Multiplications and additions by stage, for the run in the current folder."""
    params = load_params()
    split = {name: read_split(evaluate_text.PAIRS, name) for name in ("train", "val", "test")}
    pairs = {
        name: [
            (len(pair.prompt), [len(each) for each in (pair.chosen, pair.rejected) if each is not None])
            for pair in pair_rows(part)
        ]
        for name, part in split.items()
    }
    chosen = {
        name: [(len(g.prompt), [len(g.responses[0])]) for g in chosen_groups(with_chosen(part))]
        for name, part in split.items()
    }
    tokenizer = ChatTokenizer(
        evaluate_text.REFERENCE, params.format_pairs.template, params.format_pairs.template_options
    )
    questions = read_eval_sets(evaluate_text.EVALS, params.evaluate_text.max_eval_rows)
    cut = limits.resolved(params.format_pairs, evaluate_text.FORMATTED)
    groups = groups_by_set(questions, tokenizer, cut, positions(evaluate_text.REFERENCE)).values()
    evals = [(len(group.prompt), [*map(len, group.responses)]) for of_set in groups for group in of_set]
    answers = read_table(answer_text.ANSWERS, columns=["model", "id", "prompt_ids", "ids"]).to_pandas()
    sampled: dict[str, list[Lengths]] = {
        str(name): [(len(rows["prompt_ids"].iloc[0]), [*map(len, rows["ids"])]) for _, rows in part.groupby("id")]
        for name, part in answers.groupby("model")
    }

    def flops(rows: Iterable[Lengths], per_weight: int = FORWARD) -> float:
        return sum(model.flops(prompt, responses, per_weight) for prompt, responses in rows)

    def training(rows: dict[str, list[Lengths]], config: Training) -> float:
        steps = math.ceil(len(rows["train"]) / config.batch_size) * config.epochs
        validations = 1 + math.ceil(steps / config.steps_between_validations(steps))
        return config.epochs * flops(rows["train"], FORWARD + BACKWARD) + validations * flops(rows["val"])

    return {
        "sft_ref": training(chosen, params.sft_ref.training),
        "ref_logps": flops(pairs["train"]) + flops(pairs["val"]),
        "ref_evals": flops(chosen["test"]) + 2 * flops(evals),
        "control_text": training(chosen, params.dpo_text.training),
        "ref_answers": sum(flops(rows) for name, rows in sampled.items() if name != "policy"),
        "dpo_text": training(pairs, params.dpo_text.training),
        "evaluate_text": 2 * flops(pairs["test"]) + flops(evals),
        "answer_text": flops(sampled["policy"]),
    }


def table(needed: dict[str, float], seconds: dict[str, float | None], rate: float) -> str:
    """A line per stage and one for all of them. `rate` is in multiplications and additions per second."""
    lines = ["| stage | seconds | 10^12 operations | seconds at the matrix rate | share |", "|---|---|---|---|---|"]
    taken = {name: seconds[name] or float("nan") for name in needed}
    rows = [
        *((name, taken[name], needed[name]) for name in needed),
        ("all of them", sum(taken.values()), sum(needed.values())),
    ]
    for name, took, operations in rows:
        least = operations / rate
        lines.append(f"| {' | '.join([name, *map(rounded, (took, operations / 1e12, least, least / took))])} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    os.chdir(parser.parse_args().folder)
    needed = stages(model_of(evaluate_text.REFERENCE))
    from benchmarks.dpo_training import product_rate

    rate = product_rate("float32")
    print(f"{rate / 1e9:.0f} x 10^9 multiplications and additions per second.\n\n{table(needed, durations(), rate)}")


if __name__ == "__main__":
    end_in_one_line(main)
